package phoenix_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"ganglion/internal/memnet"
	"ganglion/phoenix"

	"github.com/gorilla/websocket"
)

const hubURL = "wss://hub.test/socket/websocket"

// certificates are made once: a CA, a server for all hosts of these tests and
// a client. They are valid in the year 2000 too, where synctest bubbles live.
var certificates = sync.OnceValue(func() (c struct {
	roots          *x509.CertPool
	server, client tls.Certificate
}) {
	template := func(name string) *x509.Certificate {
		serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
		if err != nil {
			panic(err)
		}
		return &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: name},
			NotBefore: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		}
	}
	issue := func(t, issuer *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		if issuer == nil {
			issuer, by = t, key
		}
		der, err := x509.CreateCertificate(rand.Reader, t, issuer, &key.PublicKey, by)
		if err != nil {
			panic(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			panic(err)
		}
		return cert, key
	}
	ca := template("test CA")
	ca.IsCA, ca.BasicConstraintsValid = true, true
	root, rootKey := issue(ca, nil, nil)
	c.roots = x509.NewCertPool()
	c.roots.AddCert(root)
	leaf := func(name string, hosts ...string) tls.Certificate {
		t := template(name)
		t.DNSNames, t.IPAddresses = hosts, []net.IP{net.IPv4(127, 0, 0, 1)}
		cert, key := issue(t, root, rootKey)
		return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	}
	c.server = leaf("server", "hub.test", "other.test")
	c.client = leaf("client")
	return c
})

func serverTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{certificates().server}}
}

func clientTLS() *tls.Config {
	return &tls.Config{
		RootCAs: certificates().roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c := certificates().client
			return &c, nil
		},
	}
}

// options reach l over TLS, whatever the host.
func options(l *memnet.Listener) phoenix.Options {
	return phoenix.Options{TLS: clientTLS(), NetDial: l.Dial}
}

// serve runs an HTTP server on a network of its own until the end of the test.
func serve(t *testing.T, config *tls.Config, h http.HandlerFunc) *memnet.Listener {
	t.Helper()
	l := memnet.Listen()
	on := net.Listener(l)
	if config != nil {
		on = tls.NewListener(l, config)
	}
	s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(on) })
	t.Cleanup(func() {
		s.Close()
		l.Drop()
		wg.Wait()
	})
	return l
}

// serveRaw runs h for every connection until the end of the test.
func serveRaw(t *testing.T, h func(net.Conn)) *memnet.Listener {
	t.Helper()
	l := memnet.Listen()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				h(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		l.Drop()
		wg.Wait()
	})
	return l
}

// answer speaks TLS, reads a request and writes what reply makes of it.
func answer(t *testing.T, reply func(*http.Request) string) *memnet.Listener {
	t.Helper()
	return serveRaw(t, func(raw net.Conn) {
		c := tls.Server(raw, serverTLS())
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		io.WriteString(c, reply(r))
		io.Copy(io.Discard, c)
	})
}

// talk accepts websockets and runs h on each.
func talk(h func(*websocket.Conn)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		u := websocket.Upgrader{EnableCompression: true} // as NervesHub does
		ws, err := u.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		h(ws)
	}
}

// echo sends back what it gets.
func echo(ws *websocket.Conn) {
	for {
		kind, b, err := ws.ReadMessage()
		if err != nil || ws.WriteMessage(kind, b) != nil {
			return
		}
	}
}

// dial connects, or the test is over; the connection ends with it.
func dial(t *testing.T, o phoenix.Options) *phoenix.Conn {
	t.Helper()
	c, err := phoenix.Dial(context.Background(), hubURL, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
