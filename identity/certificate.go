package identity

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"strings"
	"time"
)

// A pemFile is what a file held, and its name to complain about.
type pemFile struct {
	name string
	data []byte
}

// parsePair turns a certificate and a key into Credentials for device, or says
// why NervesHub would refuse them. The checks are those of its certificate
// verifier that can be made without knowing what is registered there.
func parsePair(device string, certFile, keyFile pemFile, now time.Time) (Credentials, error) {
	leaf, err := parseLeaf(certFile)
	if err != nil {
		return Credentials{}, err
	}
	key, err := parseKey(keyFile)
	if err != nil {
		return Credentials{}, err
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(leaf.PublicKey) {
		return Credentials{}, unusable(keyFile.name, "is not the key of the certificate in "+certFile.name,
			"put the pair that was made together; a certificate file that holds a chain must begin with the device's own")
	}
	if err := checkLeaf(device, certFile.name, leaf); err != nil {
		return Credentials{}, err
	}
	return Credentials{
		Certificate: &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		Notes:       notes(certFile.name, leaf, now),
	}, nil
}

// parseLeaf is the first certificate of a file; what follows it is not sent.
func parseLeaf(f pemFile) (*x509.Certificate, error) {
	var seen []string
	for block, rest := pem.Decode(f.data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			seen = append(seen, fmt.Sprintf("%.40q", block.Type))
			continue
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, unusable(f.name, fmt.Sprintf("a damaged certificate (%.200q)", err.Error()), "copy the file again")
		}
		return leaf, nil
	}
	return nil, unusable(f.name, notFound("certificate", seen), "put the device's certificate here as PEM (-----BEGIN CERTIFICATE-----)")
}

// parseKey is the first private key of a file. "EC PARAMETERS", which openssl
// writes before a key, is passed over.
func parseKey(f pemFile) (crypto.Signer, error) {
	var seen []string
	for block, rest := pem.Decode(f.data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, unusable(f.name, "an encrypted private key, and nobody to type its pass phrase",
				"decrypt it (openssl pkey -in … -out …) and keep it at mode 0600")
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			seen = append(seen, fmt.Sprintf("%.40q", block.Type))
			continue
		}
		if err != nil { // the cause stays unsaid: it could quote the key
			return nil, unusable(f.name, "a damaged private key", "copy the file again")
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, unusable(f.name, "a private key that cannot sign", "use an ECDSA P-256 key")
		}
		return signer, nil
	}
	return nil, unusable(f.name, notFound("private key", seen), "put the certificate's private key here as PEM (-----BEGIN PRIVATE KEY-----)")
}

func notFound(what string, seen []string) string {
	if len(seen) == 0 {
		return "no PEM text in it"
	}
	const enough = 4
	return fmt.Sprintf("no %s in it, only %s", what, strings.Join(seen[:min(enough, len(seen))], ", "))
}

// checkLeaf refuses what NervesHub always refuses, registered there or not.
func checkLeaf(device, file string, leaf *x509.Certificate) error {
	cn := commonName(leaf)
	switch {
	case cn != device:
		return unusable(file, fmt.Sprintf("its common name is %.80q, not %q", cn, device),
			"a device's certificate carries the device's identifier as CN; issue one, or rename both files to fit")
	case leaf.Issuer.String() == leaf.Subject.String():
		// Erlang/OTP reports selfsigned_peer by the names alone, whoever signed,
		// and NervesHub refuses it even when the certificate is stored there.
		return unusable(file, "self-signed (its issuer is its subject), which NervesHub refuses even when it is stored",
			"issue it from a CA, or at least under another issuer name")
	case len(leaf.AuthorityKeyId) == 0:
		return unusable(file, "no AuthorityKeyIdentifier (with a key identifier), without which NervesHub refuses it",
			"issue it again with authorityKeyIdentifier=keyid")
	}
	return nil
}

// commonName is the first one of the subject, the one NervesHub reads.
// (pkix.Name.CommonName is the last.)
func commonName(leaf *x509.Certificate) string {
	for _, a := range leaf.Subject.Names {
		if a.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			cn, _ := a.Value.(string)
			return cn
		}
	}
	return ""
}

// notes are about certificates that NervesHub accepts under a condition only
// it can judge.
func notes(file string, leaf *x509.Certificate, now time.Time) []string {
	var out []string
	if now.After(leaf.NotAfter) {
		out = append(out, fmt.Sprintf("%s: expired at %s; NervesHub still accepts it where this very certificate is stored, elsewhere issue a new one for the same key",
			file, leaf.NotAfter.Format(time.RFC3339)))
	}
	if now.Before(leaf.NotBefore) {
		out = append(out, fmt.Sprintf("%s: valid only from %s, and the clock here says %s; set the clock (NervesHub judges by its own)",
			file, leaf.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339)))
	}
	if len(leaf.SubjectKeyId) > 0 && bytes.Equal(leaf.SubjectKeyId, leaf.AuthorityKeyId) {
		out = append(out, file+": its SubjectKeyIdentifier equals its AuthorityKeyIdentifier, so NervesHub takes it for a CA; it works only where this very certificate is stored")
	}
	if _, ok := leaf.PublicKey.(ed25519.PublicKey); ok {
		out = append(out, file+": an Ed25519 key, which works only if NervesHub speaks TLS 1.3 (by default it does not); use ECDSA P-256")
	}
	return out
}
