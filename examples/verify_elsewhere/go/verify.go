// Package main verifies JWS-Signature with go-spiffe and go-jose; the steps are those of ../README.md.
package main

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json" // refuses members that stand there twice
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Verify returns the SPIFFE ID of who said r.Body to r.Audience in the surroundings r.Bound; or a Refused.
func (v Verifier) Verify(r Received) (id string, err error) {
	step := 0
	defer func() {
		if why := recover(); why != nil { // also for a member of another type than it must be
			id, err = "", Refused{Step: step, Why: fmt.Sprint(why)}
		}
	}()
	parts := strings.Split(r.JWS, ".")
	need(len(r.JWS) <= 8192 && len(parts) == 3 && parts[1] == "", "not a detached JWS, or too large")
	step = 1
	var header map[string]any
	need(json.Unmarshal(decoded(url, parts[0]), &header) == nil, "not one strict JSON object")
	signature := decoded(url, parts[2])
	step = 2
	need(header["typ"] == r.Typ && slices.Contains(r.Algorithms, header["alg"].(string)), "typ or alg")
	need(reflect.DeepEqual(header["crit"], []any{"a2a"}) && header["a2a"] != nil, "crit")
	need(header["b64"] == nil && header["jku"] == nil && header["jwk"] == nil && header["x5u"] == nil, "a key of its own")
	step = 3
	var chain [][]byte
	for _, entry := range header["x5c"].([]any) {
		chain = append(chain, decoded(base64.StdEncoding, entry.(string)))
	}
	agent, verified, err := x509svid.ParseAndVerify(chain, v.Bundles, x509svid.WithTime(time.Unix(v.Now, 0)))
	need(err == nil && agent.Path() != "" && len(chain) <= 8, "chain")
	leaf, thumbprint := verified[0][0], sha256.Sum256(chain[0])
	need(url.EncodeToString(thumbprint[:]) == header["x5t#S256"], "thumbprint")
	need(slices.Contains(leaf.ExtKeyUsage, kinds[r.Typ].usage) && leaf.KeyUsage&x509.KeyUsageDigitalSignature != 0, "use")
	step = 4 // go-jose refuses every `crit` but its own and cannot be told of ours: the signature is verified without it
	key := leaf.PublicKey.(*ecdsa.PublicKey)
	size := (key.Params().BitSize + 7) / 8
	hash := hashes[fmt.Sprint(header["alg"], " ", key.Params().Name)]
	need(hash != 0 && len(signature) == 2*size, "key or length")
	step = 5
	digest := hash.New()
	fmt.Fprintf(digest, "%s.%s", parts[0], url.EncodeToString(r.Body))
	rest := new(big.Int).SetBytes(signature[size:])
	need(ecdsa.Verify(key, digest.Sum(nil), new(big.Int).SetBytes(signature[:size]), rest), "signature")
	step = 6
	a2a, bound := header["a2a"].(map[string]any), map[string]any{}
	aud, iat, exp, once := a2a["aud"].(string), a2a["iat"].(float64), a2a["exp"].(float64), a2a["jti"].(string)
	need(a2a["v"] == 1.0 && a2a["iss"] == agent.String() && jti.MatchString(once), "v, iss or jti")
	need(iat == float64(int64(iat)) && exp == float64(int64(exp)), "iat or exp")
	for name, value := range a2a {
		if !slices.Contains([]string{"v", "iss", "aud", "iat", "exp", "jti"}, name) {
			need(slices.Contains(kinds[r.Typ].members, name), name)
			bound[name] = value
		}
	}
	step = 7
	need(aud == r.Audience && header["cty"] == r.Cty && reflect.DeepEqual(bound, r.Bound), "not what was received")
	step = 8
	need(iat < exp && exp-iat <= 300 && iat <= float64(v.Now)+10 && float64(v.Now) < exp, "time")
	step = 9
	once = fmt.Sprint(agent, " ", aud, " ", once)
	need((r.From == nil || r.From == agent.String()) && (r.Typ != "a2a-req+jws" || !v.Seen[once]), "another, or again")
	v.Seen[once] = true // until `exp`, for every process that receives
	return agent.String(), nil
}
