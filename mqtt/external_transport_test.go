package mqtt_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// externalCertificate is one for broker.local, signed by itself, and who trusts it.
func externalCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"broker.local"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// front accepts what the scheme asks for and carries it to the site's broker.
func front(t *testing.T, s *site, scheme string, cert tls.Certificate) (dial func(context.Context, string, string) (net.Conn, error), stop func()) {
	mem := memnet.Listen()
	var l net.Listener = mem
	if scheme == "mqtts" {
		l = tls.NewListener(mem, &tls.Config{Certificates: []tls.Certificate{cert}})
	}
	carry := func(conn net.Conn) {
		up, err := s.Dial(context.Background(), "", "")
		if err != nil {
			t.Error(err)
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(up, conn); up.Close() })
		io.Copy(conn, up)
		conn.Close()
		wg.Wait()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { carry(conn) })
		}
	})
	return mem.Dial, func() { mem.Close(); wg.Wait() }
}

func TestExternalTransports(t *testing.T) {
	for _, scheme := range []string{"mqtt", "mqtts"} {
		t.Run(scheme, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cert, pool := externalCertificate(t)
				s, r := newSite(t), new(recorder)
				dial, stop := front(t, s, scheme, cert)
				c := s.config()
				c.Dial, c.URL, c.TLS = dial, scheme+"://broker.local", &tls.Config{RootCAs: pool}
				g := run(t, external(t, c), r)
				g.up(t)
				s.publish("nh/d1/up/hello", strings.Repeat("x", 100<<10), false)
				if err := g.Publish(mqtt.Message{Device: "d1", Name: "link", Payload: []byte("up"), Retain: true}); err != nil {
					t.Error(err)
				}
				within(t, time.Second, "both ways", func() bool {
					got, _ := s.retained("nh/d1/down/link")
					return got == "up" && len(r.all()) == 2
				})
				g.stop(t)
				if p, ok := s.retained("nh/gateway"); ok {
					t.Errorf("the end was not clean: the broker published %q", p)
				}
				stop()
				s.stop()
			})
		})
	}
}

// A certificate nobody vouches for, or one for another host, gets no CONNECT
// and so no password.
func TestExternalTLSRefused(t *testing.T) {
	for _, tt := range []struct {
		name, host string
		trusted    bool
	}{
		{"unknown authority", "broker.local", false},
		{"another host", "other.local", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cert, pool := externalCertificate(t)
				if !tt.trusted {
					pool = x509.NewCertPool()
				}
				s := newSite(t)
				dial, stop := front(t, s, "mqtts", cert)
				c := s.config()
				c.Dial, c.URL, c.TLS, c.Username, c.Password = dial, "mqtts://"+tt.host, &tls.Config{RootCAs: pool}, "me", "s3cret"
				g := run(t, external(t, c), new(recorder))
				time.Sleep(10 * time.Second)
				if err := g.Health().Err; err == nil || !strings.Contains(err.Error(), "x509") || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("health says %v", err)
				}
				g.stop(t)
				stop()
				s.stop()
			})
		})
	}
}
