// Command spiffe does with go-spiffe, the reference library, what our agents do: one verb for each.
// It prints what it found and exits with 0, or prints why not and exits with 1.
package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const timeout = 20 * time.Second

var verbs = map[string]struct {
	arguments string
	run       func(a []string) error
}{
	"svid":         {"CHAIN KEY", svid},
	"verify":       {"CHAIN BUNDLE DOMAIN", verify},
	"bundle":       {"BUNDLE DOMAIN", bundle},
	"fetch-spiffe": {"URL DOMAIN BUNDLE ENDPOINT-ID", fetchSPIFFE},
	"fetch-web":    {"URL DOMAIN ROOTS", fetchWeb},
	"get":          {"URL CHAIN KEY BUNDLE DOMAIN SERVER-ID", get},
	"serve":        {"CHAIN KEY BUNDLE DOMAIN CLIENT-ID", serve},
}

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("no verb"))
	}
	verb, known := verbs[os.Args[1]]
	if !known {
		fail(fmt.Errorf("unknown verb %q", os.Args[1]))
	}
	if err := verb.run(os.Args[2:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// svid: a chain and its key are a well-formed X509-SVID, and the key fits.
func svid(a []string) error {
	loaded, err := x509svid.Load(a[0], a[1])
	if err != nil {
		return err
	}
	fmt.Println(loaded.ID)
	return nil
}

// verify: a chain leads to a root of the bundle.
func verify(a []string) error {
	text, err := os.ReadFile(a[0])
	if err != nil {
		return err
	}
	var chain [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		chain = append(chain, block.Bytes)
	}
	trusted, err := load(a[1], a[2])
	if err != nil {
		return err
	}
	id, _, err := x509svid.ParseAndVerify(chain, trusted)
	if err != nil {
		return err
	}
	fmt.Println(id)
	return nil
}

func bundle(a []string) error {
	loaded, err := load(a[0], a[1])
	if err != nil {
		return err
	}
	return describe(loaded)
}

func fetchSPIFFE(a []string) error {
	trusted, err := load(a[2], a[1])
	if err != nil {
		return err
	}
	id, err := spiffeid.FromString(a[3])
	if err != nil {
		return err
	}
	return fetch(a[0], a[1], federation.WithSPIFFEAuth(trusted, id))
}

func fetchWeb(a []string) error {
	text, err := os.ReadFile(a[2])
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return fetch(a[0], a[1], federation.WithWebPKIRoots(roots))
}

func fetch(url, name string, how federation.FetchOption) error {
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	fetched, err := federation.FetchBundle(ctx, domain, url, how)
	if err != nil {
		return err
	}
	return describe(fetched)
}

// get: a request over mutual TLS to a server that has to be SERVER-ID.
func get(a []string) error {
	own, trusted, id, err := identity(a[1:])
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSClientConfig(own, trusted, tlsconfig.AuthorizeID(id))
	client := http.Client{Timeout: timeout, Transport: &http.Transport{TLSClientConfig: config}}
	answer, err := client.Get(a[0])
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", answer.Status)
	}
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

// serve: answers clients that are CLIENT-ID with that ID, until it is killed. The first line printed is the address.
func serve(a []string) error {
	own, trusted, id, err := identity(a)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	server := http.Server{
		TLSConfig:         tlsconfig.MTLSServerConfig(own, trusted, tlsconfig.AuthorizeID(id)),
		ReadHeaderTimeout: timeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			peer, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
			if err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			fmt.Fprint(w, peer)
		}),
	}
	return server.ServeTLS(listener, "", "")
}

// identity reads CHAIN KEY BUNDLE DOMAIN ID.
func identity(a []string) (*x509svid.SVID, *spiffebundle.Bundle, spiffeid.ID, error) {
	own, err := x509svid.Load(a[0], a[1])
	if err != nil {
		return nil, nil, spiffeid.ID{}, err
	}
	trusted, err := load(a[2], a[3])
	if err != nil {
		return nil, nil, spiffeid.ID{}, err
	}
	id, err := spiffeid.FromString(a[4])
	return own, trusted, id, err
}

func load(file, name string) (*spiffebundle.Bundle, error) {
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return nil, err
	}
	return spiffebundle.Load(domain, file)
}

func describe(b *spiffebundle.Bundle) error {
	hint, _ := b.RefreshHint()
	sequence, _ := b.SequenceNumber()
	roots := [][]byte{}
	for _, root := range b.X509Authorities() {
		roots = append(roots, root.Raw)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"domain": b.TrustDomain().Name(), "roots": roots, "sequence": sequence, "refreshHint": hint.Seconds(),
	})
}
