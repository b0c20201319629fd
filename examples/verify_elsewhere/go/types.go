package main

import (
	"crypto"
	_ "crypto/sha512" // SHA-384
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// Verifier has what outlives a message.
type Verifier struct {
	Bundles x509bundle.Source
	Now     int64
	Seen    map[string]bool
}

// Received is what really arrived, and who we are. Bound has what `a2a` repeats of it: htm, htu, and so on.
type Received struct {
	Name, JWS, Typ, Audience string
	Cty, From                any // nil for none
	Body                     []byte
	Bound                    map[string]any
	Algorithms               []string
}

// Refused names the step that refused.
type Refused struct {
	Step int
	Why  string
}

func (r Refused) Error() string { return fmt.Sprintf("step %d: %s", r.Step, r.Why) }

var kinds = map[string]struct {
	members []string
	usage   x509.ExtKeyUsage
}{
	"a2a-req+jws": {[]string{"htm", "htu", "ver", "ext"}, x509.ExtKeyUsageClientAuth},
	"a2a-res+jws": {[]string{"st", "req"}, x509.ExtKeyUsageServerAuth},
}

var hashes = map[string]crypto.Hash{"ES256 P-256": crypto.SHA256, "ES384 P-384": crypto.SHA384}
var url = base64.RawURLEncoding
var jti = regexp.MustCompile(`^[A-Za-z0-9_-]{22,128}$`)

func need(ok bool, why string) {
	if !ok {
		panic(why)
	}
}

func decoded(encoding *base64.Encoding, text string) []byte {
	data, err := encoding.Strict().DecodeString(text)
	need(err == nil && !strings.ContainsAny(text, "\r\n"), "base64") // Go passes over line ends
	return data
}
