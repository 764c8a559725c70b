// Package auth decides who a device is, as NervesHub decides it: client
// certificates by the rules of its verify callback, shared secrets by its
// signed headers, refusals by its alerts and answers. It belongs to the
// stand-in of package hubtest.
//
// It must not know channels, frames or updates, and it imports nothing of the
// gateway: the client's signing and its certificates are judged here by code
// of its own.
package auth

import (
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"
)

// A Registry is what the server knows of devices, their certificates, the
// authorities that may introduce them, and shared secrets. All methods may be
// called at any time, from any goroutine.
type Registry struct {
	mu         sync.Mutex // guards everything below
	devices    map[string]*device
	stored     []stored
	cas        []authority
	secrets    map[string]secret
	secretsOff bool
	tls13      bool
}

type device struct {
	product string // "" until moved
	deleted bool
}

// stored is one row of device_certificates.
type stored struct {
	device      string
	fingerprint [sha1.Size]byte // of the DER
	key         [sha1.Size]byte // of the SubjectPublicKeyInfo
	cert        *x509.Certificate
}

type authority struct {
	cert *x509.Certificate
	jitp bool
}

type secret struct {
	secret string
	device string // "": a product secret
}

// New returns an empty Registry: shared secrets are allowed, TLS 1.3 is off.
func New() *Registry {
	return &Registry{devices: map[string]*device{}, secrets: map[string]secret{}}
}

// AddDevice registers a device, or brings a deleted one back.
func (r *Registry) AddDevice(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.devices[id]; d != nil {
		d.deleted = false
		return
	}
	r.devices[id] = &device{}
}

// DeleteDevice deletes a device softly, as NervesHub does: its certificates
// stay, and neither they nor a product secret get it in again.
func (r *Registry) DeleteDevice(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.devices[id]; d != nil {
		d.deleted = true
	}
}

// MoveDevice puts a device into another product ("" is the one everything
// starts in). Its certificates follow it, product secrets do not.
func (r *Registry) MoveDevice(id, product string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.devices[id]; d != nil {
		d.product = product
	}
}

// Known reports whether the device exists and is not deleted.
func (r *Registry) Known(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known(id)
}

func (r *Registry) known(id string) bool {
	d := r.devices[id]
	return d != nil && !d.deleted
}

// create makes a device on first contact. It fails where PostgreSQL or the
// unique index over all identifiers would.
func (r *Registry) create(id string) error {
	if !storable(id) {
		return errors.New("identifier cannot be stored")
	}
	if r.devices[id] != nil {
		return errors.New("identifier is taken")
	}
	r.devices[id] = &device{}
	return nil
}

// storable reports whether a varchar(255) in UTF-8 can hold id.
func storable(id string) bool {
	if !utf8.ValidString(id) || utf8.RuneCountInString(id) > 255 {
		return false
	}
	for i := range len(id) {
		if id[i] == 0 {
			return false
		}
	}
	return true
}

// AddCA registers an authority that may introduce devices. With jitp (just in
// time provisioning) it also creates them at their first handshake. Registration
// reads both key identifiers, so a certificate lacking one is an error.
func (r *Registry) AddCA(cert *x509.Certificate, jitp bool) error {
	if len(cert.SubjectKeyId) == 0 || len(cert.AuthorityKeyId) == 0 {
		return fmt.Errorf("auth: CA %q lacks a SubjectKeyIdentifier or AuthorityKeyIdentifier", cert.Subject.CommonName)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.authority(cert.SubjectKeyId) != nil {
		return fmt.Errorf("auth: a CA with the SubjectKeyIdentifier of %q is registered already", cert.Subject.CommonName)
	}
	r.cas = append(r.cas, authority{cert, jitp})
	return nil
}

// authority returns the registered CA with the given SubjectKeyIdentifier.
func (r *Registry) authority(ski []byte) *authority {
	for i := range r.cas {
		if len(ski) > 0 && slices.Equal(r.cas[i].cert.SubjectKeyId, ski) {
			return &r.cas[i]
		}
	}
	return nil
}

// AddSecret registers a shared secret. With device "" it is a product secret
// (nhp_…), good for every device of the product and for creating new ones; else
// it is the device's own (nhd_…).
func (r *Registry) AddSecret(key, text, device string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets[key] = secret{text, device}
}

// DisableSecrets turns shared secrets off, which is NervesHub's default in
// production: every attempt is then a bare 401.
func (r *Registry) DisableSecrets() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secretsOff = true
}

// EnableTLS13 makes connections from now on TLS 1.2 or 1.3, and like
// DEVICE_ENABLE_TLS_13 at the server it ends the list of acceptable CAs.
func (r *Registry) EnableTLS13() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tls13 = true
}

// StoreCertificate is the upload of a device certificate over NervesHub's API:
// the issuer need not be registered and is not checked.
func (r *Registry) StoreCertificate(id string, der []byte) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("auth: certificate of %s: %w", id, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known(id) {
		return fmt.Errorf("auth: no device %q", id)
	}
	if len(cert.AuthorityKeyId) == 0 {
		return fmt.Errorf("auth: certificate of %s lacks an AuthorityKeyIdentifier", id)
	}
	if err := r.store(id, cert); err != nil {
		return fmt.Errorf("auth: certificate of %s: %w", id, err)
	}
	return nil
}

// store applies the constraints of the table: one fingerprint once, one serial
// once per device, one key for one device only.
func (r *Registry) store(id string, cert *x509.Certificate) error {
	added := row(id, cert)
	for _, s := range r.stored {
		switch {
		case s.fingerprint == added.fingerprint:
			return errors.New("certificate is stored already")
		case s.device == id && s.cert.SerialNumber.Cmp(cert.SerialNumber) == 0:
			return errors.New("serial is taken")
		case s.device != id && s.key == added.key:
			return errors.New("public key belongs to another device")
		}
	}
	r.stored = append(r.stored, added)
	return nil
}

func row(id string, cert *x509.Certificate) stored {
	return stored{id, sha1.Sum(cert.Raw), sha1.Sum(cert.RawSubjectPublicKeyInfo), cert}
}

// DeleteCertificate forgets the device's certificate with the given serial, in
// decimal as NervesHub writes it, and reports whether there was one.
func (r *Registry) DeleteCertificate(id, serial string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.stored)
	r.stored = slices.DeleteFunc(r.stored, func(s stored) bool {
		return s.device == id && s.cert.SerialNumber.String() == serial
	})
	return len(r.stored) < n
}

// Certificates returns what is stored for a device, oldest first.
func (r *Registry) Certificates(id string) []*x509.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*x509.Certificate
	for _, s := range r.stored {
		if s.device == id {
			all = append(all, s.cert)
		}
	}
	return all
}
