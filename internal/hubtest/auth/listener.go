package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/hex"
	"hash"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Gate is the TCP side of the device endpoint: it sheds load as NervesHub
// does, by closing an accepted connection before any TLS byte, and lets the
// handshake end with NervesHub's alert.
type Gate struct {
	net.Listener

	mu     sync.Mutex // guards everything below
	limit  int
	shed   int
	second int64 // the wall-clock second that is being counted
	taken  int
}

// Listener wraps the endpoint's listener, which tls.NewListener is then to
// wrap. The limit begins at 100 connections per wall-clock second, over all
// clients together, which is NervesHub's DEVICE_CONNECT_RATE_LIMIT.
func Listener(l net.Listener) *Gate {
	return &Gate{Listener: l, limit: 100}
}

// Limit sets the connections per second; 0 or less means no limit.
func (g *Gate) Limit(perSecond int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = perSecond
}

// Shed has the next n connections closed, whatever the rate.
func (g *Gate) Shed(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shed = n
}

// Accept returns the next connection that is not shed.
func (g *Gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g.admit(time.Now()) {
			return &conn{Conn: c}, nil
		}
		c.Close()
	}
}

func (g *Gate) admit(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shed > 0 {
		g.shed--
		return false
	}
	if s := now.Unix(); s != g.second {
		g.second, g.taken = s, 0
	}
	g.taken++
	return g.limit <= 0 || g.taken <= g.limit
}

// A conn replaces the description in the alert that ends a refused handshake:
// crypto/tls answers every refusal with bad_certificate, Erlang with
// handshake_failure.
type conn struct {
	net.Conn
	secret trafficSecret // owned by the goroutine that handshakes
	suite  uint16        // negotiated cipher suite; owned by the same
	alert  atomic.Uint32 // description to send; 0 until the certificate is refused
}

// Write passes records on, but for that one alert.
func (c *conn) Write(b []byte) (int, error) {
	alert := c.alert.Load()
	if alert == 0 {
		return c.Conn.Write(b)
	}
	out := c.rewrite(b, byte(alert))
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close ends the connection. After a refusal it reads until the client has gone,
// for a second at most: closing a TCP socket with unread bytes in it resets the
// connection, and the reset can overtake the alert.
func (c *conn) Close() error {
	if c.alert.Load() != 0 {
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
		c.Conn.SetReadDeadline(time.Now().Add(time.Second))
		io.Copy(io.Discard, c.Conn)
	}
	return c.Conn.Close()
}

// rewrite returns the record b with the wanted alert in it, or b itself.
func (c *conn) rewrite(b []byte, alert byte) []byte {
	const (
		header   = 5
		sealed13 = header + 2 + 1 + 16 // alert, inner content type, tag
	)
	switch {
	case len(b) == header+2 && b[0] == 21: // alert, in the clear: TLS 1.2
		return append(slices.Clone(b[:header+1]), alert)
	case len(b) == sealed13 && b[0] == 23: // application_data: TLS 1.3
		return c.sealAlert(b, header, alert)
	}
	return b
}

// sealAlert builds the TLS 1.3 record anew (RFC 8446 §5.2): it is the first one
// under the server's application traffic secret, so its sequence number is 0.
// Without AES-GCM, which the standard library alone exports, b stays as it is.
func (c *conn) sealAlert(b []byte, header int, alert byte) []byte {
	keyLen, h := 16, func() hash.Hash { return sha256.New() }
	switch c.suite {
	case tls.TLS_AES_128_GCM_SHA256:
	case tls.TLS_AES_256_GCM_SHA384:
		keyLen, h = 32, func() hash.Hash { return sha512.New384() }
	default:
		return b
	}
	key, err := expandLabel(h, c.secret.value, "key", keyLen)
	if err != nil {
		return b
	}
	iv, err := expandLabel(h, c.secret.value, "iv", 12)
	if err != nil {
		return b
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return b
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return b
	}
	const fatal, contentAlert = 2, 21
	head := slices.Clone(b[:header])
	return gcm.Seal(head, iv, []byte{fatal, alert, contentAlert}, b[:header])
}

// expandLabel is HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
func expandLabel(h func() hash.Hash, secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
	return hkdf.Expand(h, secret, string(append(info, 0)), n)
}

// A trafficSecret picks the server's application secret out of the key log.
type trafficSecret struct{ value []byte }

func (s *trafficSecret) Write(line []byte) (int, error) {
	// NSS key log format: label, client random, secret.
	f := strings.Fields(string(line))
	if len(f) == 3 && f[0] == "SERVER_TRAFFIC_SECRET_0" {
		s.value, _ = hex.DecodeString(f[2]) // written by crypto/tls as hex
	}
	return len(line), nil
}
