package auth

import (
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The first vector is a constant of NervesHub's ESP32 client; all three agree
// with Plug.Crypto itself.
var vectors = []struct {
	alg, key, secret, id string
	time                 int64
	saltLen              int
	signing, etf, token  string
}{
	{"NH1-HMAC-SHA256-1000-32", "nhp_abc123", "s3cret-value", "my-device", 1787120842, 115,
		"7b3df9c32780d83f23b38b04128a43370094f282733587d1605c68fa8c6aea2e",
		"8368036d000000096d792d6465766963656e060010f5b318a0016200015180",
		"SFMyNTY.g2gDbQAAAAlteS1kZXZpY2VuBgAQ9bMYoAFiAAFRgA.9qXfZC7_ENQyT5_LZc6LsXd_uEoUB2V-IZDqcmNd7gQ"},
	{"NH1-HMAC-sha256-1000-32", "nhp_Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZmdoaWo", "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I",
		"gw01-mcu-0042", 1800000000, 152,
		"fd72aa153c44f4ba7b6ed9f6f3c24c7059d0fcab7d26fe0ae7ba4133e9b76fde",
		"8368036d0000000d677730312d6d63752d303034326e060000505c18a3016200015180",
		"SFMyNTY.g2gDbQAAAA1ndzAxLW1jdS0wMDQybgYAAFBcGKMBYgABUYA.-7lXCp-9gzzKgVyyJY5FW3qeLiXAU_CE-ugQVGjtrWY"},
	{"NH1-HMAC-sha512-4096-64", "nhd_" + strings.Repeat("A", 43), strings.Repeat("B", 43), "züri-λ-7", 1893456000, 152,
		"6597c564894c0707af0f4e803c78977a29ff3140e18ca15b45981c421cb67221cd491197ab311847d1eccda93ecc1b9218de553a7965d3c4bd2dd6779db617e1",
		"8368036d0000000a7ac3bc72692dcebb2d376e060000b4c5dab801615a",
		"SFMyNTY.g2gDbQAAAAp6w7xyaS3Ouy03bgYAALTF2rgBYVo.SJ284xGool2OMqnsHrlGprH31o8RdLdSqNqRk4nZmMY"},
}

func request(alg, key, token string, at int64) *http.Request {
	req := httptest.NewRequest("GET", "/device-socket/websocket?vsn=2.0.0", nil)
	req.Header.Set("X-Nh-Alg", alg)
	req.Header.Set("X-Nh-Key", key)
	req.Header.Set("X-Nh-Time", strconv.FormatInt(at, 10))
	req.Header.Set("X-Nh-Signature", token)
	return req
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.id, func(t *testing.T) {
			a := must(parseAlg(v.alg))(t)
			s := salt(v.alg, v.key, v.time)
			if len(s) != v.saltLen {
				t.Errorf("salt has %d bytes, want %d", len(s), v.saltLen)
			}
			if k := must(a.signingKey(v.secret, s))(t); hex.EncodeToString(k) != v.signing {
				t.Errorf("signing key %x, want %s", k, v.signing)
			}
			c := must(decodeClaims(must(hex.DecodeString(v.etf))(t)))(t)
			if c.identifier != v.id || c.signedAt != v.time*1000 {
				t.Errorf("claims %+v", c)
			}
			r := New()
			device := ""
			if strings.HasPrefix(v.key, "nhd_") {
				device = v.id
				r.AddDevice(v.id)
			}
			r.AddSecret(v.key, v.secret, device)
			for _, age := range []time.Duration{0, 5 * time.Second, 90 * time.Second} {
				id, refusal := r.Authenticate(request(v.alg, v.key, v.token, v.time), time.Unix(v.time, 0).Add(age))
				if refusal != nil || id != v.id {
					t.Errorf("aged %v: device %q, refusal %+v", age, id, refusal)
				}
			}
			for _, age := range []time.Duration{-time.Millisecond, 90*time.Second + time.Millisecond} {
				_, refusal := r.Authenticate(request(v.alg, v.key, v.token, v.time), time.Unix(v.time, 0).Add(age))
				if refusal == nil || refusal.Status != 401 || refusal.Body != "" {
					t.Errorf("aged %v: refusal %+v, want a bare 401", age, refusal)
				}
			}
		})
	}
}

func TestSecretsAndDevices(t *testing.T) {
	v := vectors[0]
	now := time.Unix(v.time+5, 0)
	cases := []struct {
		name    string
		prepare func(*Registry)
		status  int
	}{
		{"product secret creates", func(r *Registry) { r.AddSecret(v.key, v.secret, "") }, 0},
		{"product secret, device known", func(r *Registry) { r.AddSecret(v.key, v.secret, ""); r.AddDevice(v.id) }, 0},
		{"device secret", func(r *Registry) { r.AddSecret(v.key, v.secret, v.id); r.AddDevice(v.id) }, 0},
		{"device secret of another", func(r *Registry) { r.AddSecret(v.key, v.secret, "other"); r.AddDevice(v.id) }, 401},
		{"device secret, no device", func(r *Registry) { r.AddSecret(v.key, v.secret, v.id) }, 401},
		{"wrong secret", func(r *Registry) { r.AddSecret(v.key, "x", "") }, 401},
		{"deactivated", func(r *Registry) {}, 401},
		{"secrets disabled", func(r *Registry) { r.AddSecret(v.key, v.secret, ""); r.DisableSecrets() }, 401},
		{"deleted device", func(r *Registry) {
			r.AddSecret(v.key, v.secret, "")
			r.AddDevice(v.id)
			r.DeleteDevice(v.id)
		}, 401},
		{"device moved to another product", func(r *Registry) {
			r.AddSecret(v.key, v.secret, "")
			r.AddDevice(v.id)
			r.MoveDevice(v.id, "other")
		}, 401},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := New()
			c.prepare(r)
			id, refusal := r.Authenticate(request(v.alg, v.key, v.token, v.time), now)
			switch {
			case c.status == 0 && (refusal != nil || id != v.id || !r.Known(id)):
				t.Errorf("device %q known %v, refusal %+v", id, r.Known(id), refusal)
			case c.status != 0 && (refusal == nil || refusal.Status != c.status || refusal.Body != ""):
				t.Errorf("refusal %+v, want a bare %d", refusal, c.status)
			}
		})
	}
}

func TestUpgradeRequest(t *testing.T) {
	v := vectors[0]
	r := New()
	r.AddSecret(v.key, v.secret, "")
	cases := []struct {
		name   string
		change func(*http.Request)
		status int
	}{
		{"vsn 2.0.7", func(q *http.Request) { q.URL.RawQuery = "vsn=2.0.7" }, 0},
		{"vsn 2.0", func(q *http.Request) { q.URL.RawQuery = "vsn=2.0" }, 403},
		{"vsn 2.1.0", func(q *http.Request) { q.URL.RawQuery = "vsn=2.1.0" }, 403},
		{"vsn 2.0.", func(q *http.Request) { q.URL.RawQuery = "vsn=2.0." }, 403},
		{"own origin", func(q *http.Request) { q.Header.Set("Origin", "https://"+q.Host) }, 0},
		{"own origin, an IPv6 address", func(q *http.Request) {
			q.Host = "[::1]:8443"
			q.Header.Set("Origin", "https://[::1]:8443")
		}, 0},
		{"foreign origin", func(q *http.Request) { q.Header.Set("Origin", "https://elsewhere.test") }, 403},
		{"last of a repeated header", func(q *http.Request) {
			q.Header["X-Nh-Key"] = []string{"nhp_other", v.key}
		}, 0},
		{"time with a plus sign", func(q *http.Request) { q.Header.Set("X-Nh-Time", "+"+q.Header.Get("X-Nh-Time")) }, 0},
		{"time with a leading zero", func(q *http.Request) { q.Header.Set("X-Nh-Time", "0"+q.Header.Get("X-Nh-Time")) }, 0},
		{"time missing beside an unknown key", func(q *http.Request) {
			q.Header.Del("X-Nh-Time")
			q.Header.Set("X-Nh-Key", "nhp_other")
		}, 503},
		{"unusable digest beside an unknown key", func(q *http.Request) {
			q.Header.Set("X-Nh-Alg", "NH1-HMAC-md5-1000-32")
			q.Header.Set("X-Nh-Key", "nhp_other")
		}, 401},
		{"absurd iterations", func(q *http.Request) { q.Header.Set("X-Nh-Alg", "NH1-HMAC-sha256-2000000000-32") }, 401},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req := request(v.alg, v.key, v.token, v.time)
			c.change(req)
			_, refusal := r.Authenticate(req, time.Unix(v.time+5, 0))
			status := 0
			if refusal != nil {
				status = refusal.Status
			}
			if status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
		})
	}
}

func FuzzDecodeClaims(f *testing.F) {
	for _, v := range vectors {
		b, err := hex.DecodeString(v.etf)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte("\x83\x68\x02\x6d\x00\x00\x00\x01a\x61\x05"))
	f.Add([]byte("\x83\x69\x00\x00\x00\x02\x6d\x00\x00\x00\x01a\x6f\x00\x00\x00\x01\x01\x05"))
	f.Add([]byte("\x83\x68\x03\x6d\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeClaims(b)
		if err != nil {
			if !errors.Is(err, errRejected) {
				t.Fatalf("untyped error: %v", err)
			}
			return
		}
		again, err := decodeClaims(encodeClaims(c))
		if err != nil || again != c {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

// Whatever the headers say, the answer is a device or one of two refusals.
func FuzzSignedHeaders(f *testing.F) {
	for _, v := range vectors {
		f.Add(v.alg, v.key, strconv.FormatInt(v.time, 10), v.token)
	}
	v := vectors[0]
	f.Add("NH1-HMAC-md5-1000-32", v.key, "1", v.token)
	f.Add("NH1-HMAC-sha256-1-0", v.key, "1", v.token)
	f.Add("NH1-HMAC-sha256--1-32", v.key, "-9223372036854775808", "..")
	f.Fuzz(func(t *testing.T, alg, key, at, token string) {
		if a, err := parseAlg(alg); err == nil && a.iterations > 2000 {
			return // slow, and nothing new
		}
		r := New()
		r.AddSecret(v.key, v.secret, "")
		req := request(alg, key, token, 0)
		req.Header.Set("X-Nh-Time", at)
		id, refusal := r.Authenticate(req, time.Unix(v.time+5, 0))
		switch {
		case refusal == nil && (id != v.id || !r.Known(id)):
			t.Errorf("device %q", id)
		case refusal != nil && refusal.Status != 401 && refusal.Status != 503:
			t.Errorf("status %d", refusal.Status)
		case refusal != nil && (refusal.Body != "") != (refusal.Status == 503):
			t.Errorf("status %d with body %q", refusal.Status, refusal.Body)
		}
	})
}

// encodeClaims writes the two-element form, its integer as a big one.
func encodeClaims(c claims) []byte {
	b := []byte{etfVersion, etfSmallTuple, 2, etfBinary, byte(len(c.identifier) >> 24), byte(len(c.identifier) >> 16),
		byte(len(c.identifier) >> 8), byte(len(c.identifier))}
	b = append(b, c.identifier...)
	v, sign := uint64(c.signedAt), byte(0)
	if c.signedAt < 0 {
		v, sign = uint64(-c.signedAt), 1
	}
	b = append(b, etfSmallBig, 8, sign)
	for i := range 8 {
		b = append(b, byte(v>>(8*i)))
	}
	return b
}
