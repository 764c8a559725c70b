package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDirectory(t *testing.T) {
	ca := newAuthority(t, "devices")
	dir, key := t.TempDir(), newKey(t)
	ec, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	leaf := certPEM(ca.leaf(t, "dev-1", key))
	openssl := append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 1, 0}}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ec})...)
	crlf := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) }

	for _, tt := range []struct {
		name      string
		cert, key []byte
	}{
		{"PKCS #8", leaf, keyPEM(t, key)},
		{"openssl ecparam", leaf, openssl},
		{"PKCS #1", certPEM(ca.leaf(t, "dev-1", rsaKey)), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})},
		{"text around it, CRLF, a chain", crlf(append(append([]byte("subject=CN = dev-1\n"), leaf...), certPEM(ca.cert)...)), crlf(keyPEM(t, key))},
	} {
		t.Run(tt.name, func(t *testing.T) { // each replaces the files of the one before
			write(t, dir, "dev-1.pem", tt.cert, 0o644)
			write(t, dir, "dev-1-key.pem", tt.key, 0o600)
			c, err := NewDirectory(dir).Credentials(t.Context(), "dev-1")
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Certificate.Certificate) != 1 || c.Certificate.Leaf.Subject.CommonName != "dev-1" {
				t.Errorf("got %d certificates of %s, want the leaf", len(c.Certificate.Certificate), c.Certificate.Leaf.Subject)
			}
			if len(c.Notes) != 0 || c.Header != nil {
				t.Errorf("notes %q, header %v, want neither", c.Notes, c.Header)
			}
		})
	}
}

func TestReplacedFilesTakeEffect(t *testing.T) {
	ca, dir := newAuthority(t, "devices"), t.TempDir()
	d := NewDirectory(dir)
	for range 2 {
		key := newKey(t)
		leaf := ca.leaf(t, "dev-1", key)
		write(t, dir, "dev-1.pem", certPEM(leaf), 0o600)
		write(t, dir, "dev-1-key.pem", keyPEM(t, key), 0o600)
		c, err := d.Credentials(t.Context(), "dev-1")
		if err != nil {
			t.Fatal(err)
		}
		if !c.Certificate.Leaf.Equal(leaf) {
			t.Error("an older certificate was presented")
		}
	}
}

func TestUnknownDevices(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("a", 65)
	for _, device := range []string{
		"dev-1", "", ".", "..", "../dev-1", "sub/dev-1", `sub\dev-1`, "-dev", "_dev", "dev 1", "dev\x00", "dev\n1",
		"+", "#", "$SYS", "züri", "dev\u202e1", "dev\ufeff", long, strings.Repeat("a", 65536),
	} {
		for _, s := range []Source{NewDirectory(dir), &SharedSecret{key: "nhp_x", secret: "y"}} {
			if _, signs := s.(*SharedSecret); signs && device == "dev-1" {
				continue // which a product secret may speak for
			}
			_, err := s.Credentials(t.Context(), device)
			if !errors.Is(err, ErrUnknown) {
				t.Errorf("%T, %.80q: got %v, want ErrUnknown", s, device, err)
			} else if strings.ContainsAny(err.Error(), "\n\x00\u202e") || len(err.Error()) > 500 {
				t.Errorf("%T, %.80q: not a line for a log: %q", s, device, err)
			}
		}
	}
}

func TestUnusableFiles(t *testing.T) {
	ca, key := newAuthority(t, "devices"), newKey(t)
	good, goodKey := certPEM(ca.leaf(t, "dev-1", key)), keyPEM(t, key)
	self := authority{&x509.Certificate{Subject: pkix.Name{CommonName: "dev-1"}, SubjectKeyId: []byte{1}}, key}
	noAKI := func(_, parent *x509.Certificate) { parent.SubjectKeyId = nil }
	twoNames := func(leaf, _ *x509.Certificate) {
		cn := asn1.ObjectIdentifier{2, 5, 4, 3}
		leaf.Subject = pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: cn, Value: "other"}, {Type: cn, Value: "dev-1"}}}
	}
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{48, 0}})
	legacy := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{48, 0},
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}})

	for _, tt := range []struct {
		name      string
		cert, key []byte
		mode      os.FileMode // of the key
		file      string      // named in the error
		want      string
	}{
		{"key of another", good, keyPEM(t, newKey(t)), 0o600, "dev-1-key.pem", "is not the key of the certificate"},
		{"chain in the wrong order", append(certPEM(ca.cert), good...), goodKey, 0o600, "dev-1-key.pem", "must begin with the device's own"},
		{"self-signed", certPEM(self.leaf(t, "dev-1", key)), goodKey, 0o600, "dev-1.pem", "self-signed"},
		{"no AKI", certPEM(ca.leaf(t, "dev-1", key, noAKI)), goodKey, 0o600, "dev-1.pem", "AuthorityKeyIdentifier"},
		{"CN of another", certPEM(ca.leaf(t, "dev-2", key)), goodKey, 0o600, "dev-1.pem", `common name is "dev-2"`},
		{"no CN", certPEM(ca.leaf(t, "", key)), goodKey, 0o600, "dev-1.pem", `common name is ""`},
		{"first CN of another", certPEM(ca.leaf(t, "", key, twoNames)), goodKey, 0o600, "dev-1.pem", `common name is "other"`},
		{"empty certificate", nil, goodKey, 0o600, "dev-1.pem", "no PEM text"},
		{"DER certificate", []byte{48, 130, 1, 1}, goodKey, 0o600, "dev-1.pem", "no PEM text"},
		{"half a certificate", good[:len(good)/2], goodKey, 0o600, "dev-1.pem", "no PEM text"},
		{"damaged certificate", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), goodKey, 0o600, "dev-1.pem", "damaged certificate"},
		{"key in the certificate file", goodKey, goodKey, 0o600, "dev-1.pem", `only "PRIVATE KEY"`},
		{"empty key", good, nil, 0o600, "dev-1-key.pem", "no PEM text"},
		{"certificate in the key file", good, good, 0o600, "dev-1-key.pem", `only "CERTIFICATE"`},
		{"damaged key", good, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), 0o600, "dev-1-key.pem", "damaged private key"},
		{"encrypted key", good, encrypted, 0o600, "dev-1-key.pem", "encrypted"},
		{"key encrypted the old way", good, legacy, 0o600, "dev-1-key.pem", "encrypted"},
		{"key for the group", good, goodKey, 0o640, "dev-1-key.pem", "mode 0640"},
		{"key for all", good, goodKey, 0o604, "dev-1-key.pem", "chmod 600"},
		{"huge certificate", append(good, make([]byte, maxFile)...), goodKey, 0o600, "dev-1.pem", "more than 65536"},
		{"huge key", good, append(goodKey, make([]byte, maxFile)...), 0o600, "dev-1-key.pem", "more than 65536"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "dev-1.pem", tt.cert, 0o644)
			write(t, dir, "dev-1-key.pem", tt.key, tt.mode)
			wantUnusable(t, dir, tt.file, tt.want)
		})
	}
}

func TestUnusableKindsOfFile(t *testing.T) {
	ca, key := newAuthority(t, "devices"), newKey(t)
	good, goodKey := certPEM(ca.leaf(t, "dev-1", key)), keyPEM(t, key)
	for _, tt := range []struct {
		name string
		file string
		make func(path string) error // in place of file
		want string
	}{
		{"no certificate", "dev-1.pem", os.Remove, "missing"},
		{"no key", "dev-1-key.pem", os.Remove, "missing"},
		{"a directory", "dev-1.pem", replace(func(p string) error { return os.Mkdir(p, 0o700) }), "not a regular file"},
		{"a FIFO", "dev-1-key.pem", replace(func(p string) error { return syscall.Mkfifo(p, 0o600) }), "not a regular file"},
		{"a device", "dev-1.pem", replace(func(p string) error { return os.Symlink("/dev/zero", p) }), "not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "dev-1.pem", good, 0o600)
			write(t, dir, "dev-1-key.pem", goodKey, 0o600)
			if err := tt.make(filepath.Join(dir, tt.file)); err != nil {
				t.Fatal(err)
			}
			wantUnusable(t, dir, tt.file, tt.want)
		})
	}
}

func replace(with func(string) error) func(string) error {
	return func(path string) error { return errors.Join(os.Remove(path), with(path)) }
}

func wantUnusable(t *testing.T, dir, file, want string) {
	t.Helper()
	_, err := NewDirectory(dir).Credentials(t.Context(), "dev-1")
	if !errors.Is(err, ErrUnusable) || errors.Is(err, ErrUnknown) {
		t.Fatalf("got %v, want ErrUnusable", err)
	}
	for _, part := range []string{filepath.Join(dir, file) + ": ", want, "; "} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %q", part, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
}

func TestBothFilesAreNamed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "dev-1.pem", make([]byte, maxFile+1), 0o600)
	write(t, dir, "dev-1-key.pem", nil, 0o644)
	wantUnusable(t, dir, "dev-1.pem", "more than 65536")
	wantUnusable(t, dir, "dev-1-key.pem", "chmod 600")
}

func TestNotes(t *testing.T) {
	ca := newAuthority(t, "devices")
	years := func(from, to int) func(leaf, _ *x509.Certificate) {
		return func(leaf, _ *x509.Certificate) {
			leaf.NotBefore, leaf.NotAfter = time.Now().AddDate(from, 0, 0), time.Now().AddDate(to, 0, 0)
		}
	}
	asCA := func(leaf, parent *x509.Certificate) { leaf.SubjectKeyId = parent.SubjectKeyId }
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	for _, tt := range []struct {
		leaf *x509.Certificate
		key  []byte
		want string
	}{
		{ca.leaf(t, "dev-1", key, years(-2, -1)), keyPEM(t, key), "expired"},
		{ca.leaf(t, "dev-1", key, years(1, 2)), keyPEM(t, key), "set the clock"},
		{ca.leaf(t, "dev-1", key, asCA), keyPEM(t, key), "takes it for a CA"},
		{ca.leaf(t, "dev-1", ed), keyPEM(t, ed), "Ed25519"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "dev-1.pem", certPEM(tt.leaf), 0o600)
			write(t, dir, "dev-1-key.pem", tt.key, 0o600)
			c, err := NewDirectory(dir).Credentials(t.Context(), "dev-1")
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Notes) != 1 || !strings.Contains(c.Notes[0], tt.want) || c.Certificate == nil {
				t.Errorf("notes %q, want one about %q", c.Notes, tt.want)
			}
		})
	}
}

func TestCredentialsPrintNoSecret(t *testing.T) {
	c := credentials(t, newAuthority(t, "devices"), "dev-a")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, c); got != "<credentials>" {
			t.Errorf("%s printed %.80q", verb, got)
		}
	}
}

func FuzzPair(f *testing.F) {
	ca, key := newAuthority(f, "devices"), newKey(f)
	leaf, keyText := certPEM(ca.leaf(f, "dev-1", key)), keyPEM(f, key)
	f.Add(leaf, keyText)
	f.Add(leaf[:len(leaf)-30], keyText[1:])
	f.Add(append(certPEM(ca.cert), leaf...), append(leaf, keyText...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n-----END EC PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		c, err := parsePair("dev-1", pemFile{"c.pem", cert}, pemFile{"k.pem", key}, time.Unix(0, 0))
		switch {
		case err == nil:
			l := c.Certificate.Leaf
			if commonName(l) != "dev-1" || len(l.AuthorityKeyId) == 0 || len(c.Certificate.Certificate) != 1 {
				t.Errorf("accepted %v", l.Subject)
			}
		case !errors.Is(err, ErrUnusable):
			t.Errorf("got %v, want ErrUnusable", err)
		case strings.ContainsAny(err.Error(), "\n\r\x00"):
			t.Errorf("not a line for a log: %q", err)
		}
	})
}
