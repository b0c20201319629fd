package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// go run . ../../../tests/vectors/http.json: one line for each vector, "ok" or the step that refused it.
func main() {
	var document struct {
		Now     int64
		Bundles struct {
			Domains map[string]json.RawMessage `json:"trust_domains"`
		}
		Vectors []struct {
			Received
			Body string
		}
	}
	text, err := os.ReadFile(os.Args[1])
	need(err == nil, "cannot read the file")
	need(json.Unmarshal(text, &document) == nil, "not the file of vectors")
	bundles := x509bundle.NewSet()
	for name, text := range document.Bundles.Domains {
		bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(name), text)
		need(err == nil, "bundle of "+name)
		bundles.Add(bundle.X509Bundle())
	}
	known := []string{"ES256", "ES384"}
	verifier := Verifier{Bundles: bundles, Now: document.Now, Seen: map[string]bool{}}
	for _, vector := range document.Vectors {
		vector.Received.Body = decoded(url, vector.Body)
		said := "ok"
		if !slices.Contains(known, vector.Algorithms[0]) {
			said = "skipped"
		} else if _, err := verifier.Verify(vector.Received); err != nil {
			said = fmt.Sprint(err.(Refused).Step)
		}
		fmt.Printf("%s\t%s\n", said, vector.Name)
	}
}
