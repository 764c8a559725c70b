package firmware

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Keys are the public keys whose signatures are trusted. The zero Keys trust
// nobody.
type Keys struct {
	ed25519 []ed25519.PublicKey
	rsa     []*rsa.PublicKey
}

// ParseKeys reads keys as NervesHub sends them in fwup_public_keys, both kinds
// in one list: Ed25519 as the padded base64 of 32 bytes, RSA-3072 for Secure
// Boot v2 as PEM. It returns the keys it could use; the error names the others.
func ParseKeys(texts ...string) (Keys, error) {
	var k Keys
	var bad []error
	for i, text := range texts {
		if err := k.add(strings.TrimSpace(text)); err != nil {
			bad = append(bad, fmt.Errorf("firmware: key %d: %w", i+1, err))
		}
	}
	return k, errors.Join(bad...)
}

// Empty says that nobody is trusted.
func (k Keys) Empty() bool { return len(k.ed25519) == 0 && len(k.rsa) == 0 }

func (k *Keys) add(text string) error {
	if strings.HasPrefix(text, "-----BEGIN") {
		return k.addPEM(text)
	}
	key, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("neither the base64 of a 32-byte Ed25519 public key nor PEM (%d characters)", len(text))
	}
	for _, known := range k.ed25519 {
		if bytes.Equal(known, key) {
			return nil
		}
	}
	k.ed25519 = append(k.ed25519, key)
	return nil
}

func (k *Keys) addPEM(text string) error {
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil:
		return errors.New("damaged PEM")
	case block.Type != "PUBLIC KEY":
		return fmt.Errorf("PEM of type %s, not PUBLIC KEY", block.Type)
	case len(bytes.TrimSpace(rest)) > 0:
		return errors.New("more than one PEM block")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return err
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok || key.N.BitLen() != 8*rsaBytes {
		return errors.New("not an RSA-3072 key, as Secure Boot v2 has them here")
	}
	for _, known := range k.rsa {
		if known.Equal(key) {
			return nil
		}
	}
	k.rsa = append(k.rsa, key)
	return nil
}
