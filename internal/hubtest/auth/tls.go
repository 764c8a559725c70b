package auth

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

// TLS alert descriptions (RFC 8446 §6).
const (
	alertHandshakeFailure   = 40
	alertCertificateUnknown = 46
)

// advertisedCAs is how many authority names a stock NervesHub lists in its
// CertificateRequest: a public-web bundle, never the registered device CAs.
const advertisedCAs = 121

// TLS returns the configuration of the device endpoint: TLS 1.2 (see
// EnableTLS13), http/1.1, a client certificate asked for but not required, no session
// tickets. before, if not nil, is asked first. On a connection from Listener a refused certificate is
// answered with NervesHub's alert; elsewhere with the one Go sends.
func (r *Registry) TLS(server tls.Certificate, before Before) *tls.Config {
	base := &tls.Config{
		Certificates:           []tls.Certificate{server},
		NextProtos:             []string{"http/1.1"},
		MinVersion:             tls.VersionTLS12,
		MaxVersion:             tls.VersionTLS12,
		ClientAuth:             tls.RequestClientCert,
		ClientCAs:              foreignNames(),
		SessionTicketsDisabled: true,
	}
	cfg := base.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return r.configFor(base, hello, before), nil
	}
	return cfg
}

// A Before is asked about a certificate before the rules are; an error refuses
// it as they would. It may close the connection instead.
type Before func(commonName string, c net.Conn) error

// configFor binds the checks to one connection, so that it can choose the alert.
func (r *Registry) configFor(base *tls.Config, hello *tls.ClientHelloInfo, before Before) *tls.Config {
	cfg := base.Clone()
	r.mu.Lock()
	if r.tls13 {
		cfg.MaxVersion, cfg.ClientCAs = tls.VersionTLS13, nil
	}
	r.mu.Unlock()
	c, _ := hello.Conn.(*conn)
	if c != nil {
		cfg.KeyLogWriter = &c.secret
	}
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		var err error
		if before != nil {
			err = before(commonName(cs.PeerCertificates[0]), hello.Conn)
		}
		if err == nil {
			err = r.verify(cs.PeerCertificates, time.Now())
		}
		if err == nil {
			return nil
		}
		if c != nil {
			c.suite = cs.CipherSuite
			c.alert.Store(alertFor(err))
		}
		return fmt.Errorf("auth: certificate of %q refused: %w", commonName(cs.PeerCertificates[0]), err)
	}
	return cfg
}

// alertFor is handshake_failure for every reason but the one that Erlang meets
// before it asks NervesHub.
func alertFor(err error) uint32 {
	if errors.Is(err, errLongName) {
		return alertCertificateUnknown
	}
	return alertHandshakeFailure
}

// foreignNames is a pool of names that match no device's issuer: a Go client
// that sets tls.Config.Certificates finds no match and sends no certificate.
// Only the names travel, so there is nothing behind them.
func foreignNames() *x509.CertPool {
	pool := x509.NewCertPool()
	for i := range advertisedCAs {
		name := pkix.Name{Country: []string{"XX"}, CommonName: "Public Web Root " + strconv.Itoa(i+1)}
		der, err := asn1.Marshal(name.ToRDNSequence())
		if err != nil {
			panic(err) // constant input
		}
		pool.AddCert(&x509.Certificate{Raw: der, RawSubject: der})
	}
	return pool
}
