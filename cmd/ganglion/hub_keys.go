package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ganglion/internal/hubtest/auth"
)

// hubKeys are the hub's files under --dir; with dir "" nothing is written. What
// is there is used again, so that a restarted hub is the same hub to gateways
// that hold its root and its devices' certificates.
type hubKeys struct{ dir string }

// The files in the directory.
const (
	rootFile  = "hub-root" // trust it: hub.ca_file of a gateway's configuration
	hubFile   = "hub"
	caFile    = "device-ca"
	deviceDir = "devices" // identity.directory.path of a gateway's configuration
)

// load reads the server's certificate and the device CA, making what is missing.
func (k hubKeys) load(hosts []string) (tls.Certificate, *auth.CA, error) {
	if k.dir != "" {
		if err := os.MkdirAll(filepath.Join(k.dir, deviceDir), 0o700); err != nil {
			return tls.Certificate{}, nil, fmt.Errorf("hub: dir: %w", err)
		}
	}
	root, err := k.authority(rootFile, "NervesHub stand-in root")
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	ca, err := k.authority(caFile, "NervesHub stand-in devices")
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	server, err := k.server(root, hosts)
	return server, ca, err
}

func (k hubKeys) authority(name, cn string) (*auth.CA, error) {
	cert, key, err := k.read(name)
	if err != nil {
		return nil, err
	}
	if cert != nil {
		ca, err := auth.ParseCA(cert, key)
		if err != nil {
			return nil, fmt.Errorf("hub: %s: %w; delete it for a new one", k.path(name, ".pem"), err)
		}
		return ca, nil
	}
	ca, err := auth.NewCA(cn)
	if err != nil {
		return nil, err
	}
	return ca, k.write(name, ca.CertPEM, ca.KeyPEM)
}

// server returns the certificate on file if it still fits, else a new one.
func (k hubKeys) server(root *auth.CA, hosts []string) (tls.Certificate, error) {
	certPEM, keyPEM, err := k.read(hubFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	if pair, err := tls.X509KeyPair(certPEM, keyPEM); err == nil && serves(pair.Leaf, root, hosts) {
		return pair, nil
	}
	l, err := root.IssueServer(hosts...)
	if err != nil {
		return tls.Certificate{}, err
	}
	return l.Cert, k.write(hubFile, l.CertPEM, l.KeyPEM)
}

func serves(cert *x509.Certificate, root *auth.CA, hosts []string) bool {
	for _, h := range hosts {
		if cert.VerifyHostname(h) != nil {
			return false
		}
	}
	return cert.CheckSignatureFrom(root.Certificate) == nil
}

// issue makes a device's certificate unless its file is there already.
func (k hubKeys) issue(ca *auth.CA, id string) error {
	name := filepath.Join(deviceDir, id)
	if id == "" || filepath.Base(id) != id || id == "." || id == ".." {
		return usageError{fmt.Errorf("hub: issue: %q is no file name", id)}
	}
	certPEM, _, err := k.read(name)
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(certPEM); block != nil {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err == nil && cert.CheckSignatureFrom(ca.Certificate) == nil {
			return nil
		}
		return fmt.Errorf("hub: %s: not issued by %s; delete it for a new one", k.path(name, ".pem"), k.path(caFile, ".pem"))
	}
	l, err := ca.Issue(id)
	if err != nil {
		return err
	}
	return k.write(name, l.CertPEM, l.KeyPEM)
}

func (k hubKeys) path(name, suffix string) string { return filepath.Join(k.dir, name+suffix) }

// read returns a certificate and its key, or nil for both if the certificate is
// not there.
func (k hubKeys) read(name string) (cert, key []byte, err error) {
	if k.dir == "" {
		return nil, nil, nil
	}
	cert, err = os.ReadFile(k.path(name, ".pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err == nil {
		key, err = os.ReadFile(k.path(name, "-key.pem"))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("hub: dir: %w", err)
	}
	return cert, key, nil
}

// write stores the key before the certificate: what has a certificate is whole.
func (k hubKeys) write(name string, cert, key []byte) error {
	if k.dir == "" {
		return nil
	}
	for _, f := range []struct {
		suffix string
		pem    []byte
	}{{"-key.pem", key}, {".pem", cert}} {
		if err := os.WriteFile(k.path(name, f.suffix), f.pem, 0o600); err != nil {
			return fmt.Errorf("hub: dir: %w", err)
		}
	}
	return nil
}
