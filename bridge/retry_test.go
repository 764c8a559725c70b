package bridge

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"ganglion/identity"
	"ganglion/phoenix"
)

func dialError(status int, header ...string) error {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return fmt.Errorf("dial: %w", &phoenix.DialError{Status: status, Header: h, Err: errors.New("bad handshake")})
}

// TestRetry: each way a link can fail has a name, and the waits after n such
// failures lie between two bounds, whatever the jitter.
func TestRetry(t *testing.T) {
	closed := func(code int) error { return fmt.Errorf("read: %w", &phoenix.CloseError{Code: code}) }
	tests := []struct {
		err       error
		up        time.Duration
		cause     cause
		low, high []time.Duration // of the first, second, … failure; the last repeats
	}{
		{io.ErrUnexpectedEOF, 0, causeTransport, []time.Duration{0}, seconds(1, 2, 4, 8, 16, 30, 30)},
		{closed(1000), 0, causeTransport, []time.Duration{0}, seconds(1, 2, 4, 8, 16, 30)},
		{closed(1011), 0, causeTransport, []time.Duration{0}, seconds(1, 2, 4, 8, 16, 30)},
		{closed(1012), 0, causeRestart, seconds(5), seconds(10)},
		{fmt.Errorf("x: %w", phoenix.ErrShed), 0, causeShed, seconds(1), seconds(5)},
		{phoenix.ErrSilent, time.Hour, causeSilent, []time.Duration{0}, seconds(1)}, // joined for so long: each is the first
		{errJoinTimeout, 0, causeSilent, []time.Duration{0}, seconds(1, 2, 4, 8, 16, 30)},
		{dialError(401), 0, causeUnauthorize, halves(refusalWaits...), seconds(refusalWaits...)},
		{dialError(403), 0, causeForbidden, halves(refusalWaits...), seconds(refusalWaits...)},
		{dialError(503), 0, causeUnavailable, append(make([]time.Duration, 3), halves(refusalWaits...)...), append(seconds(1, 2, 4), seconds(refusalWaits...)...)},
		{dialError(503, "Retry-After", "120"), 0, causeUnavailable, seconds(120), seconds(150)},
		{dialError(429, "Retry-After", "9999999"), 0, causeStatus, seconds(300), seconds(375)},
		{dialError(301), 0, causeRedirect, []time.Duration{0}, seconds(1, 2, 4, 8, 16, 30)},
		{dialError(200), 0, causeStatus, []time.Duration{0}, seconds(1, 2, 4, 8, 16, 30)},
		{fmt.Errorf("x: %w", phoenix.ErrTLSRefused), 0, causeCertificate, halves(refusalWaits...), seconds(refusalWaits...)},
		{fmt.Errorf("x: %w", identity.ErrUnknown), 0, causeIdentity, halves(refusalWaits...), seconds(refusalWaits...)},
		{fmt.Errorf("x: %w", identity.ErrUnusable), 0, causeIdentity, halves(refusalWaits...), seconds(refusalWaits...)},
		{fmt.Errorf("x: %w", x509.UnknownAuthorityError{}), 0, causeServer, halves(refusalWaits...), seconds(refusalWaits...)},
		{&joinError{"join crashed"}, 0, causeJoin, halves(refusalWaits...), seconds(refusalWaits...)},
	}
	for _, tt := range tests {
		for _, jitter := range []float64{0, 0.5, 0.999} {
			var r retry
			now := time.Unix(1e9, 0)
			for n := range 8 {
				why, wait := r.after(tt.err, tt.up, now, jitter)
				low, high := tt.low[min(n, len(tt.low)-1)], tt.high[min(n, len(tt.high)-1)]
				if why != tt.cause || wait < low || wait > high {
					t.Errorf("%v: failure %d at jitter %g: %s, wait %s; want %s, %s to %s", tt.err, n+1, jitter, why, wait, tt.cause, low, high)
				}
				now = now.Add(wait)
			}
		}
	}
}

// refusalWaits are the longest, of which at least half is kept.
var refusalWaits = []int{5, 10, 20, 40, 80, 160, 300}

func seconds(s ...int) []time.Duration {
	var d []time.Duration
	for _, n := range s {
		d = append(d, time.Duration(n)*time.Second)
	}
	return d
}

func halves(s ...int) []time.Duration {
	d := seconds(s...)
	for i := range d {
		d[i] /= 2
	}
	return d
}

// TestRetryResets: only a link that was joined for a minute clears the slate.
func TestRetryResets(t *testing.T) {
	now := time.Unix(1e9, 0)
	var r retry
	for range 6 {
		r.after(io.EOF, 0, now, 0.999)
	}
	if _, wait := r.after(io.EOF, 59*time.Second, now, 0.999); wait < 29*time.Second {
		t.Errorf("a link that lasted 59 s cleared the slate: %s", wait)
	}
	if _, wait := r.after(io.EOF, time.Minute, now, 0.999); wait > time.Second {
		t.Errorf("a link that lasted a minute did not: %s", wait)
	}
}

// TestDialsApart: however lucky the jitter, a device dials at most once a second.
func TestDialsApart(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := retry{dialedAt: now.Add(-200 * time.Millisecond)}
	if _, wait := r.after(io.EOF, 0, now, 0); wait != 800*time.Millisecond {
		t.Errorf("got %s", wait)
	}
}

// TestTakeovers: an operator's reconnect is answered at once, a rival is not
// fought, and after an hour of peace it is forgotten.
func TestTakeovers(t *testing.T) {
	taken := &phoenix.CloseError{Code: 1001}
	now := time.Unix(1e9, 0)
	var r retry
	for i, want := range []struct {
		up, low, high time.Duration
		cause         cause
	}{
		{time.Hour, 0, time.Second, causeTaken},
		{time.Second, 15 * time.Second, 30 * time.Second, causeContested},
		{time.Second, 30 * time.Second, time.Minute, causeContested},
		{2 * time.Minute, time.Minute, 2 * time.Minute, causeContested},
		{time.Second, 2 * time.Minute, 4 * time.Minute, causeContested},
		{time.Second, 150 * time.Second, 5 * time.Minute, causeContested},
		{time.Second, 150 * time.Second, 5 * time.Minute, causeContested},
	} {
		for _, jitter := range []float64{0, 0.999} {
			try := r
			why, wait := try.after(taken, want.up, now, jitter)
			if why != want.cause || wait < want.low || wait > want.high {
				t.Errorf("takeover %d: %s after %s, want %s after %s to %s", i+1, why, wait, want.cause, want.low, want.high)
			}
			if jitter > 0 {
				r = try
				now = now.Add(wait)
			}
		}
	}
	if why, _ := r.after(taken, time.Minute, now.Add(2*time.Hour), 0); why != causeTaken {
		t.Errorf("a rival of two hours ago is not forgotten: %s", why)
	}
}
