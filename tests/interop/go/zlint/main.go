// Command zlint runs the lints of the RFCs over files of DER and prints one JSON object for each file: lint to
// finding, for every lint that found anything. Those of the CA/Browser Forum and of browsers are about web sites.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
	"golang.org/x/crypto/ocsp"
)

func main() {
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{
		lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC6960, lint.RFC8813, lint.Community,
	}})
	if err != nil {
		fail(err)
	}
	for _, file := range os.Args[1:] {
		results, err := run(file, registry)
		if err != nil {
			fail(fmt.Errorf("%s: %w", file, err))
		}
		found := map[string]string{}
		for name, result := range results.Results {
			if result.Status != lint.Pass && result.Status != lint.NA && result.Status != lint.NE {
				found[name] = strings.TrimSpace(result.Status.String() + " " + result.Details)
			}
		}
		if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"ran": len(results.Results), "found": found}); err != nil {
			fail(err)
		}
	}
}

func run(file string, registry lint.Registry) (*zlint.ResultSet, error) {
	der, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	switch {
	case strings.HasSuffix(file, ".crl"):
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, err
		}
		return zlint.LintRevocationListEx(list, registry), nil
	case strings.HasSuffix(file, ".ocsp"):
		response, err := ocsp.ParseResponse(der, nil)
		if err != nil {
			return nil, err
		}
		return zlint.LintOcspResponseEx(response, registry), nil
	default:
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		return zlint.LintCertificateEx(certificate, registry), nil
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
