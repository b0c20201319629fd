// load sends HTTP requests as fast as a server answers them, over plain TCP or TLS, and counts the answers.
//
// The requests are made before: one JSON object a line, {"header": "Name: value", "body": "..."}. With -requests each
// of them is sent that often in turn until the count is reached; -fresh opens a connection for each. It writes one
// line of JSON: how many answers were 2xx, how many were not, the seconds from the first to the last, and an answer
// that was not 2xx.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

type request struct {
	Header string `json:"header"`
	Body   string `json:"body"`
}

type result struct {
	Good    int64   `json:"good"`
	Bad     int64   `json:"bad"`
	Seconds float64 `json:"seconds"`
	Problem string  `json:"problem"`
}

func main() {
	target := flag.String("url", "", "where to")
	file := flag.String("file", "", "the requests")
	kind := flag.String("type", "application/json", "their content type")
	count := flag.Int64("requests", 1000, "how many to send")
	connections := flag.Int("connections", 16, "how many at a time")
	fresh := flag.Bool("fresh", false, "a connection for each request")
	roots := flag.String("roots", "", "PEM: whom to trust; nothing: plain HTTP")
	name := flag.String("name", "", "the DNS name to expect in the server's certificate; nothing: any name")
	chain := flag.String("chain", "", "PEM: the client's certificates")
	key := flag.String("key", "", "PEM: the client's key")
	flag.Parse()

	where, err := url.Parse(*target)
	check(err)
	raw := prepare(*file, where, *kind)
	var config *tls.Config
	if *roots != "" {
		config = configure(*roots, *name, *chain, *key)
	}

	var next, good, bad atomic.Int64
	var problem atomic.Value
	var group sync.WaitGroup
	start := time.Now()
	for range *connections {
		group.Add(1)
		go func() {
			defer group.Done()
			var connection net.Conn
			var answers *bufio.Reader
			for {
				number := next.Add(1) - 1
				if number >= *count {
					return
				}
				if connection == nil {
					opened, err := dial(where.Host, config)
					if err != nil {
						bad.Add(1)
						problem.Store(err.Error())
						continue
					}
					connection, answers = opened, bufio.NewReader(opened)
				}
				failure := exchange(connection, answers, raw[number%int64(len(raw))])
				if failure == "" {
					good.Add(1)
				} else {
					bad.Add(1)
					problem.Store(failure)
				}
				if *fresh || failure != "" {
					connection.Close()
					connection = nil
				}
			}
		}()
	}
	group.Wait()
	seconds := time.Since(start).Seconds()
	text, _ := problem.Load().(string)
	check(json.NewEncoder(os.Stdout).Encode(result{good.Load(), bad.Load(), seconds, text}))
}

// exchange sends one request and reads its answer; it returns what was wrong with it.
func exchange(connection net.Conn, answers *bufio.Reader, raw []byte) string {
	if _, err := connection.Write(raw); err != nil {
		return err.Error()
	}
	answer, err := http.ReadResponse(answers, nil)
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error()
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Sprintf("%s: %.300s", answer.Status, body)
	}
	return ""
}

func dial(address string, config *tls.Config) (net.Conn, error) {
	if config == nil {
		return net.Dial("tcp", address)
	}
	return tls.Dial("tcp", address, config)
}

func prepare(file string, where *url.URL, kind string) [][]byte {
	lines, err := os.Open(file)
	check(err)
	defer lines.Close()
	var raw [][]byte
	for decoder := json.NewDecoder(lines); decoder.More(); {
		var one request
		check(decoder.Decode(&one))
		head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n",
			where.RequestURI(), where.Host, kind, len(one.Body))
		if one.Header != "" {
			head += one.Header + "\r\n"
		}
		raw = append(raw, []byte(head+"\r\n"+one.Body))
	}
	return raw
}

func configure(roots, name, chain, key string) *tls.Config {
	pem, err := os.ReadFile(roots)
	check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	config := &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS13}
	if name == "" {
		// The server of an agent CA has a SPIFFE ID and perhaps no name: its chain is verified, and no name.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, one := range state.PeerCertificates[1:] {
				between.AddCert(one)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between})
			return err
		}
	}
	if chain != "" {
		own, err := tls.LoadX509KeyPair(chain, key)
		check(err)
		config.Certificates = []tls.Certificate{own}
	}
	return config
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
