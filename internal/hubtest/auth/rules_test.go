package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func chain(leaf *Leaf, more ...*x509.Certificate) []*x509.Certificate {
	return append([]*x509.Certificate{leaf.Cert.Leaf}, more...)
}

func newRules(t *testing.T) (*world, time.Time) {
	t.Helper()
	w := &world{Registry: New(), t: t, ca: must(NewCA("gw"))(t), jitp: must(NewCA("jitp"))(t), rogue: must(NewCA("rogue"))(t)}
	if err := errors.Join(w.AddCA(w.ca.Certificate, false), w.AddCA(w.jitp.Certificate, true)); err != nil {
		t.Fatal(err)
	}
	return w, time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
}

func (w *world) check(what string, chain []*x509.Certificate, now time.Time, want error) {
	w.t.Helper()
	got := w.verify(chain, now)
	if want == nil && got != nil || want != nil && (got == nil || got.Error() != want.Error()) {
		w.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestChains(t *testing.T) {
	w, now := newRules(t)
	w.AddDevice("a")
	w.AddDevice("b")
	bare := *w.ca.Certificate // as a root minted without AuthorityKeyIdentifier
	bare.AuthorityKeyId = nil

	w.check("leaf and its CA", chain(w.leaf(w.ca, "a", LeafOptions{}), w.ca.Certificate), now, nil)
	w.check("CA without AKI in the chain", chain(w.leaf(w.ca, "b", LeafOptions{}), &bare), now, errNoAKI)
	w.check("another CA in the chain", chain(w.leaf(w.ca, "b", LeafOptions{}), w.rogue.Certificate), now, errors.New("invalid_issuer"))
	w.check("unregistered CA in the chain", chain(w.leaf(w.rogue, "b", LeafOptions{}), w.rogue.Certificate), now, errUnknownCA)
	w.check("no AKI", chain(w.leaf(w.ca, "b", LeafOptions{NoAuthorityKeyID: true})), now, errNoAKI)
	w.check("no common name", chain(w.leaf(w.ca, "", LeafOptions{})), now, errNoCommonName)
	w.check("forged issuer", chain(w.leaf(w.rogue, "b", LeafOptions{SelfIssuer: "gw", AuthorityKeyID: w.ca.Certificate.SubjectKeyId})),
		now, errors.New("invalid_signature"))
}

func TestValidity(t *testing.T) {
	w, now := newRules(t)
	w.AddDevice("a")
	old := w.leaf(w.ca, "a", LeafOptions{NotAfter: now.Add(-time.Hour)})
	w.check("expired", chain(old), now, errors.New("cert_expired"))
	w.check("not yet valid", chain(w.leaf(w.ca, "a", LeafOptions{NotBefore: now.Add(time.Hour)})), now, errors.New("cert_expired"))
	w.check("in time", chain(old), now.Add(-2*time.Hour), nil)
	w.check("expired but stored", chain(old), now.AddDate(10, 0, 0), nil)
}

func TestPinning(t *testing.T) {
	w, now := newRules(t)
	w.AddDevice("a")
	w.AddDevice("b")
	key := must(newKey())(t)
	first := w.leaf(w.ca, "a", LeafOptions{Key: key})
	w.check("first", chain(first), now, nil)
	w.check("again", chain(first), now, nil)
	w.check("another key", chain(w.leaf(w.ca, "a", LeafOptions{})), now, errOtherKey)
	w.check("same key, other name", chain(w.leaf(w.ca, "b", LeafOptions{Key: key})), now, errMismatched)
	w.check("same key, unregistered CA", chain(w.leaf(w.rogue, "a", LeafOptions{Key: key})), now, errUnknownCA)
	w.check("same key, the other registered CA", chain(w.leaf(w.jitp, "a", LeafOptions{Key: key})), now, nil)
	w.check("third with that key", chain(w.leaf(w.ca, "a", LeafOptions{Key: key})), now, errManyRows)
	if n := len(w.Certificates("a")); n != 2 {
		t.Errorf("%d certificates stored, want 2", n)
	}
	if err := w.StoreCertificate("b", first.Cert.Certificate[0]); err == nil {
		t.Error("a stored certificate was stored for a second device")
	}
	if err := w.StoreCertificate("b", w.leaf(w.ca, "b", LeafOptions{Key: key}).Cert.Certificate[0]); err == nil {
		t.Error("one key was stored for two devices")
	}
}

func TestDeletedDevices(t *testing.T) {
	w, now := newRules(t)
	key := must(newKey())(t)
	w.check("created", chain(w.leaf(w.jitp, "a", LeafOptions{Key: key})), now, nil)
	pinned := w.Certificates("a")
	w.DeleteDevice("a")
	w.check("stored certificate", pinned, now, errDeleted)
	w.check("stored key", chain(w.leaf(w.jitp, "a", LeafOptions{Key: key})), now, errDeleted)
	w.check("new key", chain(w.leaf(w.jitp, "a", LeafOptions{})), now, errDeleted)
	if _, ok := w.device(pinned[0]); ok || w.Known("a") {
		t.Error("a deleted device is known")
	}
	w.AddDevice("a")
	w.check("brought back", pinned, now, nil)
}

func TestJITPCannotStoreEveryName(t *testing.T) {
	w, now := newRules(t)
	w.check("NUL", chain(w.leaf(w.jitp, "a\x00b", LeafOptions{})), now, errors.New("identifier cannot be stored"))
	w.check("256 bytes", chain(w.leaf(w.jitp, strings.Repeat("c", 256), LeafOptions{})), now, errLongName)
	if w.Known("a\x00b") {
		t.Error("device was created")
	}
}

func TestAddCANeedsKeyIdentifiers(t *testing.T) {
	w, _ := newRules(t)
	bare := *w.rogue.Certificate
	bare.AuthorityKeyId = nil
	if err := w.AddCA(&bare, false); err == nil {
		t.Error("a CA without AuthorityKeyIdentifier was registered")
	}
	if err := w.AddCA(w.ca.Certificate, true); err == nil {
		t.Error("a CA was registered twice")
	}
}

// The limit counts all clients together, by the second of the wall clock.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := Listener(nil)
		count := func(n int) (admitted int) {
			for range n {
				if g.admit(time.Now()) {
					admitted++
				}
			}
			return admitted
		}
		if n := count(150); n != 100 {
			t.Errorf("admitted %d of 150 in a second, want 100", n)
		}
		time.Sleep(time.Second)
		g.Shed(3)
		if n := count(10); n != 7 {
			t.Errorf("admitted %d of 10 with 3 to shed, want 7", n)
		}
		g.Limit(0)
		if n := count(500); n != 500 {
			t.Errorf("admitted %d of 500 without a limit", n)
		}
	})
}

// A shed client sees its connection end before any TLS byte.
func TestShedConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server, _, err := NewServerCertificate("localhost")
	if err != nil {
		t.Fatal(err)
	}
	g := Listener(l)
	g.Shed(1)
	srv := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: quiet()}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(tls.NewListener(g, New().TLS(server, nil))) }()
	defer func() { srv.Close(); <-served }()
	dial := func() error {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		return tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
	}
	var reset *net.OpError
	if err := dial(); !errors.Is(err, io.EOF) && !errors.As(err, &reset) {
		t.Errorf("shed: %v, want EOF or a reset", err)
	}
	if err := dial(); err != nil {
		t.Errorf("the next connection: %v", err)
	}
}

func TestParseCA(t *testing.T) {
	w, now := newRules(t)
	w.AddDevice("a")
	again := must(ParseCA(w.ca.CertPEM, w.ca.KeyPEM))(t)
	w.check("leaf of the CA read back", chain(w.leaf(again, "a", LeafOptions{})), now, nil)
	l := must(again.Issue("b"))(t)
	if _, err := ParseCA(l.CertPEM, l.KeyPEM); err == nil {
		t.Error("a leaf was taken for a CA")
	}
}
