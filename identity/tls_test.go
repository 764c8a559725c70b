package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"testing"
)

// A server is a TLS listener that asks for a certificate and needs none, as
// NervesHub's does.
type server struct {
	config *tls.Config
	roots  *x509.CertPool
}

func newServer(t *testing.T, version uint16, hints *x509.CertPool) server {
	t.Helper()
	ca := newAuthority(t, "server root")
	key := newKey(t)
	cert := ca.leaf(t, "hub.test", key)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return server{
		config: &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
			ClientAuth:   tls.RequestClientCert, ClientCAs: hints,
			MinVersion: version, MaxVersion: version, NextProtos: []string{"h2", "http/1.1"},
		},
		roots: roots,
	}
}

// handshake connects cfg to the server over loopback TCP, lets the server say
// one byte (so that a TLS 1.3 client has read the session tickets) and returns
// what the server saw.
func (s server) handshake(t *testing.T, cfg *tls.Config) tls.ConnectionState {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type outcome struct {
		state tls.ConnectionState
		err   error
	}
	served := make(chan outcome, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			served <- outcome{err: err}
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, s.config)
		_, err = conn.Write([]byte{1})
		served <- outcome{conn.ConnectionState(), err}
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	o := <-served
	if o.err != nil {
		t.Fatal(o.err)
	}
	return o.state
}

func credentials(t *testing.T, ca authority, device string) Credentials {
	t.Helper()
	dir, key := t.TempDir(), newKey(t)
	write(t, dir, device+".pem", certPEM(ca.leaf(t, device, key), ca.cert), 0o644)
	write(t, dir, device+"-key.pem", keyPEM(t, key), 0o600)
	c, err := NewDirectory(dir).Credentials(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTwoDevicesNeverShareASession(t *testing.T) {
	s := newServer(t, tls.VersionTLS13, nil)
	base := &tls.Config{RootCAs: s.roots, ServerName: "hub.test", ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	ca := newAuthority(t, "devices")
	a, b := credentials(t, ca, "dev-a"), credentials(t, ca, "dev-b")

	for _, dial := range []struct {
		device string
		c      Credentials
	}{{"dev-a", a}, {"dev-b", b}, {"dev-a", a}} {
		saw := s.handshake(t, dial.c.TLS(base))
		if saw.DidResume {
			t.Errorf("%s resumed a session", dial.device)
		}
		if got := saw.PeerCertificates[0].Subject.CommonName; got != dial.device {
			t.Errorf("the server saw %s, want %s", got, dial.device)
		}
	}

	// The trap itself: with the cache left in, the second device is the first.
	for i, c := range []Credentials{a, b} {
		cfg := c.TLS(base)
		cfg.ClientSessionCache = base.ClientSessionCache
		saw := s.handshake(t, cfg)
		if saw.DidResume != (i == 1) || saw.PeerCertificates[0].Subject.CommonName != "dev-a" {
			t.Errorf("dial %d with a shared cache: resumed %v as %s; this test proves nothing",
				i, saw.DidResume, saw.PeerCertificates[0].Subject.CommonName)
		}
	}
}

func TestLeafIsSentWhateverTheServerLists(t *testing.T) {
	hints := x509.NewCertPool()
	for i := range 121 {
		hints.AddCert(newAuthority(t, fmt.Sprintf("public root %d", i)).cert)
	}
	c := credentials(t, newAuthority(t, "devices"), "dev-a")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			s := newServer(t, version, hints)
			base := &tls.Config{RootCAs: s.roots, ServerName: "hub.test"}
			saw := s.handshake(t, c.TLS(base))
			if len(saw.PeerCertificates) != 1 || saw.PeerCertificates[0].Subject.CommonName != "dev-a" {
				t.Errorf("the server saw %d certificates, want the leaf of dev-a", len(saw.PeerCertificates))
			}
			if saw.NegotiatedProtocol != "http/1.1" {
				t.Errorf("negotiated %q, want http/1.1", saw.NegotiatedProtocol)
			}

			base.Certificates = []tls.Certificate{*c.Certificate}
			if saw := s.handshake(t, base); len(saw.PeerCertificates) != 0 {
				t.Error("crypto/tls chose the leaf by itself; this test proves nothing")
			}
		})
	}
}

func TestOnlyTheLeafIsSent(t *testing.T) {
	ca, key := newAuthority(t, "devices"), newKey(t)
	leaf := ca.leaf(t, "dev-a", key)
	s := newServer(t, tls.VersionTLS13, nil)
	base := &tls.Config{RootCAs: s.roots, ServerName: "hub.test"}
	chain := Credentials{Certificate: &tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.cert.Raw}, PrivateKey: key}}
	if saw := s.handshake(t, chain.TLS(base)); len(saw.PeerCertificates) != 1 {
		t.Errorf("the server saw %d certificates, want 1", len(saw.PeerCertificates))
	}
	if len(chain.Certificate.Certificate) != 2 {
		t.Error("TLS changed the Credentials")
	}
}

func TestSecretsPresentNoCertificate(t *testing.T) {
	c := credentials(t, newAuthority(t, "devices"), "dev-a")
	s := newServer(t, tls.VersionTLS12, nil)
	base := c.TLS(&tls.Config{RootCAs: s.roots, ServerName: "hub.test"})
	if saw := s.handshake(t, Credentials{}.TLS(base)); len(saw.PeerCertificates) != 0 {
		t.Errorf("the server saw %d certificates, want none", len(saw.PeerCertificates))
	}
	if cfg := (Credentials{}).TLS(nil); cfg.MinVersion != tls.VersionTLS12 {
		t.Errorf("minimum version %x, want TLS 1.2", cfg.MinVersion)
	}
}
