package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Everything made here is valid from the instant at which the clock of a
// synctest bubble begins, so that a bubble and the real clock both accept it.
var (
	validFrom  = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	validUntil = time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC)
)

// A CA issues device certificates in the profile NervesHub accepts.
type CA struct {
	Certificate     *x509.Certificate
	CertPEM, KeyPEM []byte
	key             *ecdsa.PrivateKey
}

// NewCA makes a self-signed P-256 authority, its AuthorityKeyIdentifier set to
// its SubjectKeyIdentifier: registration at NervesHub fails without, and
// x509.CreateCertificate leaves it out of a self-signed certificate.
func NewCA(name string) (*CA, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	ski, err := keyID(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: validFrom, NotAfter: validUntil,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:     x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId: ski, AuthorityKeyId: ski,
	}
	cert, err := create(t, t, key, key)
	if err != nil {
		return nil, fmt.Errorf("auth: CA %q: %w", name, err)
	}
	l, err := newLeaf(cert, key)
	if err != nil {
		return nil, err
	}
	return &CA{cert, l.CertPEM, l.KeyPEM, key}, nil
}

// ParseCA reads what NewCA made.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("auth: CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("auth: CA: not an authority with an ECDSA key")
	}
	return &CA{pair.Leaf, certPEM, keyPEM, key}, nil
}

// A Leaf is a device's certificate with its key.
type Leaf struct {
	Cert            tls.Certificate // Leaf is set
	CertPEM, KeyPEM []byte
}

// Issue makes a device certificate that NervesHub accepts.
func (ca *CA) Issue(cn string) (Leaf, error) { return ca.IssueWith(cn, LeafOptions{}) }

// LeafOptions are deviations from the accepted profile.
type LeafOptions struct {
	Key                 *ecdsa.PrivateKey // instead of a new one
	NotBefore, NotAfter time.Time         // instead of 2000 to 2049
	NoAuthorityKeyID    bool
	SubjectKeyID        []byte // there is none otherwise
	AuthorityKeyID      []byte // instead of the CA's, or the own one if SelfIssuer is set

	// SelfIssuer signs with the leaf's own key under this issuer name; equal to
	// the common name, the leaf is self-signed.
	SelfIssuer string
}

// IssueWith makes a device certificate that deviates from the profile.
func (ca *CA) IssueWith(cn string, o LeafOptions) (Leaf, error) {
	key := o.Key
	if key == nil {
		var err error
		if key, err = newKey(); err != nil {
			return Leaf{}, err
		}
	}
	parent, signer := *ca.Certificate, ca.key
	if o.SelfIssuer != "" {
		parent = x509.Certificate{Subject: pkix.Name{CommonName: o.SelfIssuer}, SubjectKeyId: o.SubjectKeyID}
		signer = key
	}
	if o.AuthorityKeyID != nil {
		parent.SubjectKeyId = o.AuthorityKeyID
	}
	if o.NoAuthorityKeyID {
		parent.SubjectKeyId = nil
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: cn},
		NotBefore: validFrom, NotAfter: validUntil,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		SubjectKeyId:          o.SubjectKeyID, AuthorityKeyId: parent.SubjectKeyId,
	}
	if !o.NotBefore.IsZero() {
		t.NotBefore = o.NotBefore
	}
	if !o.NotAfter.IsZero() {
		t.NotAfter = o.NotAfter
	}
	cert, err := create(t, &parent, key, signer)
	if err != nil {
		return Leaf{}, fmt.Errorf("auth: leaf %q: %w", cn, err)
	}
	return newLeaf(cert, key)
}

func newLeaf(cert *x509.Certificate, key *ecdsa.PrivateKey) (Leaf, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Leaf{}, fmt.Errorf("auth: key: %w", err)
	}
	return Leaf{
		Cert:    tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert},
		CertPEM: certPEM(cert.Raw),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	}, nil
}

// NewServerCertificate makes a certificate for the given host names and IP
// addresses, and the root that clients must trust.
func NewServerCertificate(hosts ...string) (server tls.Certificate, rootPEM []byte, err error) {
	root, err := NewCA("NervesHub stand-in root")
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	l, err := root.IssueServer(hosts...)
	return l.Cert, root.CertPEM, err
}

// IssueServer makes a server certificate for host names and IP addresses.
func (ca *CA) IssueServer(hosts ...string) (Leaf, error) {
	key, err := newKey()
	if err != nil {
		return Leaf{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "NervesHub stand-in"},
		NotBefore: validFrom, NotAfter: validUntil,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	cert, err := create(t, ca.Certificate, key, ca.key)
	if err != nil {
		return Leaf{}, fmt.Errorf("auth: server certificate: %w", err)
	}
	return newLeaf(cert, key)
}

func create(t, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// serial is positive and 127 bits at random.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// keyID is method 1 of RFC 5280 §4.2.1.2.
func keyID(key *ecdsa.PublicKey) ([]byte, error) {
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("auth: key: %w", err)
	}
	sum := sha1.Sum(point)
	return bytes.Clone(sum[:]), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
