// Package identity knows how each device proves itself to NervesHub: with a
// certificate of its own ([Directory]) or by a signature made from a shared
// secret ([SharedSecret]). It reads files, signs and explains; it knows nothing
// of connections, channels, MQTT or the lives of devices.
package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Credentials are what one device presents on one dial. Certificate or Header
// is set, not both: NervesHub ignores the header where it sees a certificate.
type Credentials struct {
	Certificate *tls.Certificate // mutual TLS
	Header      http.Header      // shared secret, signed for this dial; never reuse it

	// Notes are what an operator should know though the dial may well succeed,
	// one line each with its remedy: a certificate that has expired, a clock
	// that looks wrong.
	Notes []string
}

// A Source finds a device's Credentials. It is asked again on every dial, so
// it may rotate, renew or mint them, and the caller keeps nothing between.
//
// Credentials returns an error wrapping [ErrUnknown] if the gateway has no
// right to speak for the device, and one wrapping [ErrUnusable] if what it has
// cannot work until an operator changes it. Any other error is worth another
// try soon.
type Source interface {
	Credentials(ctx context.Context, device string) (Credentials, error)
}

// Clocked is a [Source] whose Credentials depend on the time of day.
//
// ServerDate tells it, after a refused dial, the Date header of the refusal
// and when that was read (with its monotonic reading). It is a hint, used only
// while the local clock is off.
type Clocked interface {
	ServerDate(date, received time.Time)
}

var (
	// ErrUnknown: the gateway has nothing that lets it speak for the device.
	ErrUnknown = errors.New("no credentials for this device")
	// ErrUnusable: there is something, and NervesHub or TLS would always
	// refuse it. The wrapping error names the file, what was found and the
	// remedy.
	ErrUnusable = errors.New("unusable credentials")
)

// TLS returns a copy of base that presents c, and only c.
//
// The leaf is handed over whatever CA names the server lists: NervesHub lists
// public ones, and crypto/tls would pick from Certificates none that matches
// and silently send nothing. Only the leaf is sent: NervesHub refuses a chain
// whose CA has no AuthorityKeyIdentifier, and gains nothing from one that has.
// There is no session cache: a resumed session carries the identity of the
// device that opened it.
func (c Credentials) TLS(base *tls.Config) *tls.Config {
	cfg := base.Clone()
	if cfg == nil {
		cfg = &tls.Config{}
	}
	cfg.ClientSessionCache = nil
	cfg.Certificates = nil
	cfg.GetClientCertificate = nil
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.NextProtos = []string{"http/1.1"} // websockets here do not ride on HTTP/2
	if c.Certificate == nil {
		return cfg
	}
	leaf := *c.Certificate
	leaf.Certificate = leaf.Certificate[:min(1, len(leaf.Certificate))]
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &leaf, nil
	}
	return cfg
}

// Format prints no key and no signature, whatever the verb.
func (c Credentials) Format(f fmt.State, _ rune) { io.WriteString(f, "<credentials>") }

// maxDevice is the longest identifier, bytes: what an X.509 common name holds
// (RFC 5280 appendix A.1, ub-common-name).
const maxDevice = 64

// checkDevice refuses what is not [A-Za-z0-9][A-Za-z0-9._-]{0,63}, so that no
// identifier can name a path outside its directory. NervesHub itself takes
// nearly any text, and a product secret would create a device of that name.
func checkDevice(device string) error {
	ok := device != "" && len(device) <= maxDevice
	for i := 0; ok && i < len(device); i++ {
		c := device[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		ok = alnum || i > 0 && (c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("identity: %.80q is not a device identifier ([A-Za-z0-9][A-Za-z0-9._-]{0,63}): %w", device, ErrUnknown)
	}
	return nil
}
