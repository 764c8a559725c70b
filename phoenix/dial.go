package phoenix

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	defaultReadLimit        = 1 << 20
	defaultWriteTimeout     = 10 * time.Second
	defaultHandshakeTimeout = 15 * time.Second
)

// ErrTLSRefused means the server answered with a TLS alert, as it does to a
// client certificate it does not accept: inside the handshake in TLS 1.2, in
// place of the HTTP response in TLS 1.3. The alert does not say why, and
// another try soon will fare no better.
var ErrTLSRefused = errors.New("refused with a TLS alert")

// ErrShed means the server hung up inside the TLS handshake without an alert,
// or reset the connection at once, as one does that sheds load. Another try 1 to 5 s later is in order.
var ErrShed = errors.New("hung up inside the TLS handshake")

// Options configure [Dial]. The zero value is ready to use.
type Options struct {
	// TLS is cloned for every connection, which then negotiates http/1.1 by
	// ALPN, speaks at least TLS 1.2 and never resumes a session: a resumed one
	// might not present the client certificate.
	TLS *tls.Config
	// Header is added to the request. If it is not empty it is taken for a
	// secret, and no redirect to another host is followed.
	Header http.Header
	// NetDial replaces [net.Dialer.DialContext].
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)

	ReadLimit        int64         // bytes of the largest message accepted; 0: 1 MiB
	WriteTimeout     time.Duration // for each message; 0: 10 s
	HandshakeTimeout time.Duration // for all of Dial, redirects included; 0: 15 s
	ReadTimeout      time.Duration // longest silence, renewed by every frame; 0: none
	UserAgent        string
}

func (o Options) withDefaults() Options {
	if o.NetDial == nil {
		o.NetDial = new(net.Dialer).DialContext
	}
	if o.ReadLimit <= 0 {
		o.ReadLimit = defaultReadLimit
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = defaultWriteTimeout
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = defaultHandshakeTimeout
	}
	return o
}

// A DialError is a request the server answered with something other than a
// websocket: a refusal, or a redirect that was not followed.
type DialError struct {
	Status int // of the HTTP response
	Header http.Header
	Err    error
}

func (e *DialError) Error() string {
	return fmt.Sprintf("phoenix: dial: %d %s: %v", e.Status, http.StatusText(e.Status), e.Err)
}

func (e *DialError) Unwrap() error { return e.Err }

// Date is the server's clock as its answer told it, to the second.
func (e *DialError) Date() (t time.Time, ok bool) {
	t, err := http.ParseTime(e.Header.Get("Date"))
	return t, err == nil
}

// Dial connects to a Phoenix socket such as wss://host/socket/websocket. It
// asks for protocol version 2.0.0, offers no compression, uses the proxy named
// in the environment and follows at most two redirects.
//
// The error is or wraps a *[DialError], [ErrTLSRefused], [ErrShed], a
// *[tls.CertificateVerificationError] if the server's own certificate is not
// to be trusted, the error of ctx, or whatever the network said. A
// HandshakeTimeout that has passed is [context.DeadlineExceeded].
func Dial(ctx context.Context, rawURL string, o Options) (*Conn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("phoenix: dial: %w", err)
	}
	if u.Scheme != "ws" && u.Scheme != "wss" || u.Hostname() == "" || u.User != nil {
		return nil, fmt.Errorf("phoenix: dial: %q is not wss://host/path or ws://host/path", u.Redacted())
	}
	o = o.withDefaults()
	ctx, cancel := context.WithTimeoutCause(ctx, o.HandshakeTimeout,
		fmt.Errorf("no connection within %v: %w", o.HandshakeTimeout, context.DeadlineExceeded))
	defer cancel()
	for hops := 0; ; hops++ {
		c, err := dialOnce(ctx, u, o)
		refusal, ok := errors.AsType[*DialError](err)
		if !ok || !isRedirect(refusal.Status) {
			return c, err
		}
		if u, err = redirect(u, refusal.Header, len(o.Header) > 0, hops); err != nil {
			refusal.Err = err
			return nil, refusal
		}
	}
}
