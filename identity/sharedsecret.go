package identity

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// backdate is how far in the past a signature is dated. NervesHub accepts
	// 0 s to 90 s of age and nothing from the future, not even 50 ms.
	backdate = 5 * time.Second
	// clockSlack is how far the local clock may be off and still be signed
	// with; less than backdate, as the Date header is cut to whole seconds.
	clockSlack = 3 * time.Second
	// maxAge is written into the token, seconds. NervesHub applies its own 90 s.
	maxAge = 86400
)

// SharedSecret is a [Source] that signs for any device with the secret of a
// NervesHub product (key nhp_…) or of one device (nhd_…).
//
// When the local clock is wrong every signature is refused, so it listens to
// [Clocked.ServerDate]: while the last hint says the local clock is more than
// 3 s off, it signs by the server's date plus the time elapsed since. As soon
// as the local clock agrees with that again, the local clock is used and the
// hint forgotten.
type SharedSecret struct {
	key, secret string

	mu   sync.Mutex // guards hint
	hint serverDate
}

// A serverDate is what the server's clock said, and when that was read.
type serverDate struct{ date, received time.Time }

var (
	_ Source  = (*SharedSecret)(nil)
	_ Clocked = (*SharedSecret)(nil)
)

// NewSharedSecret takes the key and the secret as NervesHub shows them. A line
// end after the secret, as files have one, is cut off.
func NewSharedSecret(key, secret string) (*SharedSecret, error) {
	secret = strings.TrimRight(secret, "\r\n")
	switch {
	case !strings.HasPrefix(key, "nhp_") && !strings.HasPrefix(key, "nhd_"):
		return nil, fmt.Errorf("identity: shared secret: key %.12q begins neither with nhp_ (a product's) nor nhd_ (a device's); copy it from NervesHub's settings", key)
	case !graphic(key):
		return nil, errors.New("identity: shared secret: the key holds blanks or unusual characters; copy it again")
	case secret == "":
		return nil, errors.New("identity: shared secret: the secret is empty; copy it from NervesHub's settings")
	case !graphic(secret):
		return nil, errors.New("identity: shared secret: the secret holds blanks, line ends or unusual characters; keep the secret alone, on one line")
	}
	return &SharedSecret{key: key, secret: secret}, nil
}

// graphic reports whether s is visible ASCII without blanks.
func graphic(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// Credentials signs for device, now.
func (s *SharedSecret) Credentials(_ context.Context, device string) (Credentials, error) {
	if err := checkDevice(device); err != nil {
		return Credentials{}, err
	}
	now, off := s.clock(time.Now())
	h, err := sign(current, s.key, s.secret, device, now.Add(-backdate), maxAge)
	if err != nil {
		return Credentials{}, err
	}
	c := Credentials{Header: h}
	if off != 0 {
		c.Notes = []string{fmt.Sprintf("the clock here is %s off NervesHub's, which is used to sign instead; set the clock", off.Round(time.Second))}
	}
	return c, nil
}

// ServerDate implements [Clocked]. Any number of devices may report.
func (s *SharedSecret) ServerDate(date, received time.Time) {
	if date.IsZero() || received.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hint = serverDate{date, received}
}

// clock is the time to sign by, given the local one, and how far the local
// clock is off if it is not used.
func (s *SharedSecret) clock(local time.Time) (now time.Time, off time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hint.date.IsZero() {
		return local, 0
	}
	elapsed := local.Sub(s.hint.received) // monotonic, whatever the wall clock did
	if now, off = s.hint.clock(local.Round(0), elapsed); off == 0 {
		s.hint = serverDate{}
	}
	return now, off
}

// clock is the time elapsed after d was read, by the wall clock if that is
// right, else by the server's and how far off the wall clock is.
func (d serverDate) clock(wall time.Time, elapsed time.Duration) (now time.Time, off time.Duration) {
	server := d.date.Add(elapsed)
	if off = wall.Sub(server); off.Abs() <= clockSlack {
		return wall, 0
	}
	return server, off
}

// Format prints neither key nor secret, whatever the verb.
func (s *SharedSecret) Format(f fmt.State, _ rune) { io.WriteString(f, "<shared secret>") }

// A scheme is how the key that signs is derived: the x-nh-alg header.
type scheme struct {
	digest     string // as sent: it is part of the salt
	hash       func() hash.Hash
	iterations int
	keyLen     int // bytes
}

// current is what NervesHub's own client uses.
var current = scheme{digest: "sha256", hash: sha256.New, iterations: 1000, keyLen: 32}

func (s scheme) String() string {
	return fmt.Sprintf("NH1-HMAC-%s-%d-%d", s.digest, s.iterations, s.keyLen)
}

// sign makes the four headers that NervesHub's shared secrets ask for. at is
// cut to whole seconds; a clock before 1970 signs for 1970.
func sign(sc scheme, key, secret, device string, at time.Time, maxAge int) (http.Header, error) {
	seconds := max(0, at.Unix())
	salt := salt(sc, key, seconds)
	signingKey, err := pbkdf2.Key(sc.hash, secret, []byte(salt), sc.iterations, sc.keyLen)
	if err != nil {
		return nil, fmt.Errorf("identity: derive the signing key: %w", err)
	}
	h := http.Header{}
	h.Set("x-nh-alg", sc.String())
	h.Set("x-nh-key", key)
	h.Set("x-nh-time", strconv.FormatInt(seconds, 10))
	h.Set("x-nh-signature", token(signingKey, claims(device, seconds*1000, maxAge)))
	return h, nil
}

func salt(sc scheme, key string, seconds int64) string {
	return fmt.Sprintf("NH1:device-socket:shared-secret:connect\n\nx-nh-alg=%s\nx-nh-key=%s\nx-nh-time=%d\n", sc, key, seconds)
}

// token is Plug.Crypto's signed message; "SFMyNTY" is HS256, which the MAC is
// whatever digest derived the key.
func token(signingKey, claims []byte) string {
	b64 := base64.RawURLEncoding
	signed := "SFMyNTY." + b64.EncodeToString(claims)
	mac := hmac.New(sha256.New, signingKey)
	mac.Write([]byte(signed))
	return signed + "." + b64.EncodeToString(mac.Sum(nil))
}

// claims is {device, signedAtMillis, maxAgeSeconds} in Erlang's external term
// format: SMALL_TUPLE_EXT, BINARY_EXT, SMALL_BIG_EXT of six bytes (enough until
// the year 10889), and the shorter of SMALL_INTEGER_EXT and INTEGER_EXT.
func claims(device string, signedAtMillis int64, maxAgeSeconds int) []byte {
	b := []byte{131, 104, 3, 109}
	b = binary.BigEndian.AppendUint32(b, uint32(len(device)))
	b = append(b, device...)
	var ms [8]byte
	binary.LittleEndian.PutUint64(ms[:], uint64(signedAtMillis))
	b = append(b, 110, 6, 0)
	b = append(b, ms[:6]...)
	if maxAgeSeconds <= math.MaxUint8 {
		return append(b, 97, byte(maxAgeSeconds))
	}
	return binary.BigEndian.AppendUint32(append(b, 98), uint32(maxAgeSeconds))
}
