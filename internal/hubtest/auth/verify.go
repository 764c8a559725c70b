package auth

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"time"
)

// Reasons as NervesHub's telemetry calls them. On the wire they all look alike.
var (
	errSelfSigned    = errors.New("selfsigned_peer")
	errNoAKI         = errors.New("no AuthorityKeyIdentifier")
	errUnknownCA     = errors.New("unknown_ca")
	errDeleted       = errors.New("device is deleted")
	errMismatched    = errors.New("mismatched_cert")
	errNoCommonName  = errors.New("missing_common_name")
	errNotRegistered = errors.New("device_not_registered")
	errOtherKey      = errors.New("unexpected_pubkey")
	errManyRows      = errors.New("more than one certificate with this key")
	errLongName      = errors.New("common name over 255 bytes") // OTP cannot decode it
)

// verify decides on the chain a client sent, leaf first. It may create the
// device and store the certificate, before the client has proven that it holds
// the key: Erlang's verify callback runs at the same moment.
func (r *Registry) verify(chain []*x509.Certificate, now time.Time) error {
	for _, cert := range chain {
		if len(commonName(cert)) > 255 {
			return errLongName
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	leaf := chain[0]
	if len(chain) == 1 {
		// Names decide, not keys: a leaf signed with its own key under another
		// issuer name is no selfsigned_peer.
		if bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
			return errSelfSigned
		}
		return r.unknownIssuer(leaf, now)
	}
	// No device CA is in the server's trust store, so the topmost certificate
	// is the one with an unknown issuer; what hangs below it is merely valid.
	if err := r.unknownIssuer(chain[len(chain)-1], now); err != nil {
		return err
	}
	for i, cert := range chain[:len(chain)-1] {
		if err := issued(chain[i+1], cert); err != nil {
			return err
		}
	}
	return r.doVerify(leaf, now)
}

// unknownIssuer handles OTP's {bad_cert, unknown_ca} event.
func (r *Registry) unknownIssuer(cert *x509.Certificate, now time.Time) error {
	switch {
	case len(cert.AuthorityKeyId) == 0:
		return errNoAKI
	case bytes.Equal(cert.AuthorityKeyId, cert.SubjectKeyId):
		return nil // taken for a root; as a leaf it meets a bare 401 later
	case r.authority(cert.SubjectKeyId) != nil:
		return nil
	}
	return r.doVerify(cert, now)
}

// doVerify is NervesHub's do_verify: known certificate, known key, or neither.
func (r *Registry) doVerify(cert *x509.Certificate, now time.Time) error {
	if len(cert.AuthorityKeyId) == 0 {
		return errNoAKI
	}
	if s := r.byFingerprint(cert); s != nil {
		if !r.known(s.device) {
			return errDeleted
		}
		return nil // neither validity nor issuer is looked at
	}
	switch rows := r.byKey(cert); len(rows) {
	case 0:
		return r.introduce(cert, now)
	case 1:
		return r.renew(rows[0].device, cert, now)
	default:
		return errManyRows // the query expects one row at most, and raises
	}
}

func (r *Registry) byFingerprint(cert *x509.Certificate) *stored {
	f := sha1.Sum(cert.Raw)
	for i := range r.stored {
		if r.stored[i].fingerprint == f {
			return &r.stored[i]
		}
	}
	return nil
}

func (r *Registry) byKey(cert *x509.Certificate) (rows []stored) {
	k := sha1.Sum(cert.RawSubjectPublicKeyInfo)
	for _, s := range r.stored {
		if s.key == k {
			rows = append(rows, s)
		}
	}
	return rows
}

// renew takes another certificate for a key that is stored once.
func (r *Registry) renew(id string, cert *x509.Certificate, now time.Time) error {
	switch {
	case !r.known(id):
		return errDeleted
	case commonName(cert) != id:
		return errMismatched
	}
	if _, err := r.issuer(cert, now); err != nil {
		return err
	}
	return r.store(id, cert)
}

// introduce takes the first certificate of a device, creating the device where
// the CA may.
func (r *Registry) introduce(cert *x509.Certificate, now time.Time) error {
	id := commonName(cert)
	if id == "" {
		return errNoCommonName
	}
	ca, err := r.issuer(cert, now)
	if err != nil {
		return err
	}
	switch d := r.devices[id]; {
	case d != nil && d.deleted:
		return errDeleted
	case d == nil && !ca.jitp:
		return errNotRegistered
	case d == nil:
		if err := r.create(id); err != nil {
			return err
		}
	}
	for _, s := range r.stored {
		if s.device == id {
			return errOtherKey
		}
	}
	return r.store(id, cert)
}

// issuer returns the registered CA that signed cert directly. The CA's own
// validity is ignored, as it is at NervesHub by default.
func (r *Registry) issuer(cert *x509.Certificate, now time.Time) (*authority, error) {
	ca := r.authority(cert.AuthorityKeyId)
	if ca == nil {
		return nil, errUnknownCA
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, errors.New("cert_expired")
	}
	return ca, issued(ca.cert, cert)
}

func issued(ca, cert *x509.Certificate) error {
	if !bytes.Equal(ca.RawSubject, cert.RawIssuer) {
		return errors.New("invalid_issuer")
	}
	if ca.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) != nil {
		return errors.New("invalid_signature")
	}
	return nil
}

// commonName returns the first commonName attribute; the Subject's field of
// that name holds the last.
func commonName(cert *x509.Certificate) string {
	oid := asn1.ObjectIdentifier{2, 5, 4, 3}
	for _, atv := range cert.Subject.Names {
		if s, ok := atv.Value.(string); ok && atv.Type.Equal(oid) {
			return s
		}
	}
	return ""
}

// device returns who a certificate that passed the handshake stands for.
func (r *Registry) device(cert *x509.Certificate) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.byFingerprint(cert)
	if s == nil || !r.known(s.device) {
		return "", false
	}
	return s.device, true
}
