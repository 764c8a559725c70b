package mqtt_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// signCertificate makes a certificate for name, signed by parent or by itself.
func signCertificate(t *testing.T, name string, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	signer, by := template, any(key)
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	} else {
		signer, by = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Behind a TLS listener that asks for certificates, a device is who its
// certificate says.
func TestClientCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := signCertificate(t, "ca", nil)
		server, probe := signCertificate(t, "localhost", &ca), signCertificate(t, "probe-1", &ca)
		pool := x509.NewCertPool()
		pool.AddCert(ca.Leaf)
		l := memnet.Listen()
		b := runBroker(t, mqtt.EmbeddedConfig{Listener: tls.NewListener(l, &tls.Config{
			Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		})}, newWitness(), func() (net.Conn, error) {
			c, err := l.Dial(t.Context(), "", "")
			if err != nil {
				return nil, err
			}
			return tls.Client(c, &tls.Config{Certificates: []tls.Certificate{probe}, RootCAs: pool, ServerName: "localhost"}), nil
		})
		if ack := b.socket().hello(rawConnect{id: "probe-2"}); ack[1] != 5 {
			t.Errorf("another's certificate: CONNACK %x", ack)
		}
		b.connect(rawConnect{id: "probe-1"}).alive()
		silent, err := l.Dial(t.Context(), "", "") // not even a handshake
		if err != nil {
			t.Fatal(err)
		}
		newRawClient(t, silent).gone(11 * time.Second)
	})
}
