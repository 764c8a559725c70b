package auth

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Texts of the header nh-connection-error-reason and of the body with it.
const (
	reasonNone     = "no certificate pair or shared secrets connection settings were provided"
	reasonPlatform = "the platform could not be reached to authenticate this device"
)

// A Refusal is the answer to an upgrade request that is not taken.
type Refusal struct {
	Status int
	Header http.Header
	Body   string
}

func refuse(status int, reason string) *Refusal {
	h := http.Header{
		"Cache-Control": {"max-age=0, private, must-revalidate"},
		"Vary":          {"accept-encoding"},
	}
	if reason != "" {
		h["Nh-Connection-Error-Reason"] = []string{reason}
	}
	return &Refusal{status, h, reason}
}

// ServeHTTP writes the refusal, with no header that NervesHub does not send.
func (f *Refusal) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	for k, v := range f.Header {
		h[k] = v
	}
	h["Content-Type"] = nil // keeps net/http from guessing one
	h.Set("Content-Length", strconv.Itoa(len(f.Body)))
	w.WriteHeader(f.Status)
	w.Write([]byte(f.Body))
}

var _ http.Handler = (*Refusal)(nil)

// Authenticate returns the device that an upgrade request speaks for, or the
// refusal to answer it with. The protocol version and a foreign Origin come
// first (403). With a client certificate only that counts; without one, the
// x-nh-* headers. A product secret may create the device.
func (r *Registry) Authenticate(req *http.Request, now time.Time) (string, *Refusal) {
	if !jsonV2(req.URL.Query().Get("vsn")) || foreignOrigin(req) {
		return "", refuse(http.StatusForbidden, "")
	}
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		id, ok := r.device(req.TLS.PeerCertificates[0])
		if !ok {
			return "", refuse(http.StatusUnauthorized, "")
		}
		return id, nil
	}
	if !anyX(req.Header) {
		return "", refuse(http.StatusUnauthorized, reasonNone)
	}
	id, err := r.signed(req.Header, now)
	switch {
	case errors.Is(err, errRaised):
		return "", refuse(http.StatusServiceUnavailable, reasonPlatform)
	case err != nil:
		return "", refuse(http.StatusUnauthorized, "") // the reason is never disclosed
	}
	return id, nil
}

// jsonV2 reports whether Phoenix has the JSON serializer for a vsn: "~> 2.0.0".
func jsonV2(vsn string) bool {
	patch, ok := strings.CutPrefix(vsn, "2.0.")
	_, err := strconv.ParseUint(patch, 10, 32)
	return ok && err == nil && (patch == "0" || patch[0] != '0')
}

// foreignOrigin is Phoenix's check_origin: absent is fine, another host is not.
func foreignOrigin(req *http.Request) bool {
	origin := req.Header.Get("Origin")
	if origin == "" {
		return false
	}
	u, err := url.Parse(origin)
	if err != nil {
		return true
	}
	own := url.URL{Host: req.Host}
	return u.Hostname() != own.Hostname()
}

// anyX reports whether a header begins with "x-"; the socket sees no others.
func anyX(h http.Header) bool {
	for k := range h {
		if strings.HasPrefix(strings.ToLower(k), "x-") {
			return true
		}
	}
	return false
}

// errRaised marks headers that make the server raise: a 503 for ever, looking
// like an outage.
var errRaised = errors.New("exception while authenticating")

var errRejected = errors.New("rejected")

// signed authenticates shared-secret headers in the order NervesHub does, since
// the order decides between 401 and 503.
func (r *Registry) signed(h http.Header, now time.Time) (string, error) {
	alg, err := parseAlg(last(h, "X-Nh-Alg"))
	if err != nil {
		return "", err
	}
	if len(h.Values("X-Nh-Time")) == 0 {
		return "", fmt.Errorf("x-nh-time missing: %w", errRaised)
	}
	at, err := strconv.ParseInt(last(h, "X-Nh-Time"), 10, 64)
	if err != nil {
		return "", errRejected
	}
	key := last(h, "X-Nh-Key")
	r.mu.Lock()
	s, ok := r.secrets[key]
	ok = ok && !r.secretsOff
	r.mu.Unlock()
	if !ok || len(h.Values("X-Nh-Signature")) == 0 {
		return "", errRejected
	}
	signing, err := alg.signingKey(s.secret, salt(alg.text, key, at))
	if err != nil {
		return "", err
	}
	id, err := openToken(last(h, "X-Nh-Signature"), signing, now)
	if err != nil {
		return "", err
	}
	return id, r.admit(s, id)
}

// admit decides whether a proven secret may speak for id.
func (r *Registry) admit(s secret, id string) error {
	if !storable(id) {
		return fmt.Errorf("identifier cannot be stored: %w", errRaised)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.devices[id]
	switch {
	case id == "", s.device != "" && s.device != id:
		return errRejected
	case d == nil && s.device == "":
		return r.create(id)
	case d == nil, d.deleted, s.device == "" && d.product != "":
		return errRejected
	}
	return nil
}

// last is the last value of a repeated header: the one that wins.
func last(h http.Header, name string) string {
	if v := h.Values(name); len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

// algorithm is a parsed x-nh-alg.
type algorithm struct {
	text       string // as sent; it is part of the salt
	digest     string // lower case
	iterations int
	length     int // of the key, bytes
}

// digests are the names that Plug.Crypto derives keys with.
var digests = map[string]func() hash.Hash{
	"sha": sha1.New, "sha224": sha256.New224, "sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New,
}

// atoms are names the VM knows as atoms without being such a digest; it knows
// thousands, these are the ones seen to raise.
var atoms = map[string]bool{"error": true, "crc32": true, "md5": true, "sha3_256": true, "blake2b": true}

// parseAlg reads NH1-HMAC-<digest>-<iterations>-<key length>.
func parseAlg(text string) (algorithm, error) {
	rest, ok := strings.CutPrefix(text, "NH1-HMAC-")
	part := strings.Split(rest, "-")
	if !ok || len(part) != 3 {
		return algorithm{}, errRejected
	}
	a := algorithm{text: text, digest: strings.ToLower(part[0])}
	if digests[a.digest] == nil && !atoms[a.digest] {
		return algorithm{}, errRejected
	}
	var err1, err2 error
	a.iterations, err1 = strconv.Atoi(part[1])
	a.length, err2 = strconv.Atoi(part[2])
	if err1 != nil || err2 != nil {
		return algorithm{}, errRejected
	}
	return a, nil
}

// Bounds that keep one request from occupying the stand-in. NervesHub has none
// of its own below the VM's.
const (
	maxIterations = 1_000_000
	maxKeyLength  = 1024
)

func (a algorithm) signingKey(text, salt string) ([]byte, error) {
	h := digests[a.digest]
	switch {
	case h == nil, a.length == 0:
		return nil, fmt.Errorf("%s: %w", a.text, errRaised)
	case a.iterations < 1, a.iterations > maxIterations, a.length < 0, a.length > maxKeyLength:
		return nil, errRejected
	}
	return pbkdf2.Key(h, text, []byte(salt), a.iterations, a.length)
}

// salt is rendered from the parsed time, so a sign or leading zeros in the
// header break the match.
func salt(alg, key string, at int64) string {
	return fmt.Sprintf("NH1:device-socket:shared-secret:connect\n\nx-nh-alg=%s\nx-nh-key=%s\nx-nh-time=%d\n", alg, key, at)
}

// maxAge is the server's own window; the age inside the token is not read.
const maxAge = 90 * time.Second

// macs are the token's own: by its first part, not by x-nh-alg.
var macs = map[string]func() hash.Hash{"HS256": sha256.New, "HS384": sha512.New384, "HS512": sha512.New}

// openToken checks a Plug.Crypto token and returns the identifier in it. There
// is no tolerance for a client whose clock is ahead.
func openToken(token string, key []byte, now time.Time) (string, error) {
	part := strings.Split(token, ".")
	if len(part) != 3 {
		return "", errRejected
	}
	var raw [3][]byte
	for i, p := range part {
		var err error
		if raw[i], err = base64.RawURLEncoding.DecodeString(strings.TrimRight(p, "=")); err != nil {
			return "", errRejected
		}
	}
	h := macs[string(raw[0])]
	if h == nil {
		return "", errRejected
	}
	mac := hmac.New(h, key)
	mac.Write([]byte(part[0] + "." + part[1]))
	if !hmac.Equal(mac.Sum(nil), raw[2]) {
		return "", errRejected
	}
	c, err := decodeClaims(raw[1])
	if err != nil {
		return "", err
	}
	ms := now.UnixMilli()
	if c.signedAt > ms || ms > c.signedAt+maxAge.Milliseconds() {
		return "", errRejected
	}
	return c.identifier, nil
}
