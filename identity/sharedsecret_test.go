package identity

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The vectors agree with Plug.Crypto itself; the first is also asserted by a
// unit test of NervesHub's ESP client.
func TestSignatureVectors(t *testing.T) {
	for _, tt := range []struct {
		scheme              scheme
		alg                 string
		key, secret, device string
		time                int64
		maxAge              int
		saltLen             int
		signingKey          string
		etf                 string
		signature           string
	}{
		{
			scheme: scheme{"SHA256", sha256.New, 1000, 32}, alg: "NH1-HMAC-SHA256-1000-32",
			key: "nhp_abc123", secret: "s3cret-value", device: "my-device", time: 1787120842, maxAge: 86400,
			saltLen:    115,
			signingKey: "7b3df9c32780d83f23b38b04128a43370094f282733587d1605c68fa8c6aea2e",
			etf:        "8368036d000000096d792d6465766963656e060010f5b318a0016200015180",
			signature:  "SFMyNTY.g2gDbQAAAAlteS1kZXZpY2VuBgAQ9bMYoAFiAAFRgA.9qXfZC7_ENQyT5_LZc6LsXd_uEoUB2V-IZDqcmNd7gQ",
		},
		{
			scheme: current, alg: "NH1-HMAC-sha256-1000-32",
			key: "nhp_Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZmdoaWo", secret: "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I",
			device: "gw01-mcu-0042", time: 1800000000, maxAge: maxAge,
			saltLen:    152,
			signingKey: "fd72aa153c44f4ba7b6ed9f6f3c24c7059d0fcab7d26fe0ae7ba4133e9b76fde",
			etf:        "8368036d0000000d677730312d6d63752d303034326e060000505c18a3016200015180",
			signature:  "SFMyNTY.g2gDbQAAAA1ndzAxLW1jdS0wMDQybgYAAFBcGKMBYgABUYA.-7lXCp-9gzzKgVyyJY5FW3qeLiXAU_CE-ugQVGjtrWY",
		},
		{
			scheme: scheme{"sha512", sha512.New, 4096, 64}, alg: "NH1-HMAC-sha512-4096-64",
			key: "nhd_" + strings.Repeat("A", 43), secret: strings.Repeat("B", 43),
			device: "züri-λ-7", time: 1893456000, maxAge: 90,
			saltLen: 152,
			signingKey: "6597c564894c0707af0f4e803c78977a29ff3140e18ca15b45981c421cb67221" +
				"cd491197ab311847d1eccda93ecc1b9218de553a7965d3c4bd2dd6779db617e1",
			etf:       "8368036d0000000a7ac3bc72692dcebb2d376e060000b4c5dab801615a",
			signature: "SFMyNTY.g2gDbQAAAAp6w7xyaS3Ouy03bgYAALTF2rgBYVo.SJ284xGool2OMqnsHrlGprH31o8RdLdSqNqRk4nZmMY",
		},
	} {
		t.Run(tt.alg, func(t *testing.T) {
			salt := salt(tt.scheme, tt.key, tt.time)
			if len(salt) != tt.saltLen {
				t.Errorf("salt of %d bytes, want %d", len(salt), tt.saltLen)
			}
			key, err := pbkdf2.Key(tt.scheme.hash, tt.secret, []byte(salt), tt.scheme.iterations, tt.scheme.keyLen)
			if got := hex.EncodeToString(key); err != nil || got != tt.signingKey {
				t.Errorf("signing key %s (%v), want %s", got, err, tt.signingKey)
			}
			if got := hex.EncodeToString(claims(tt.device, tt.time*1000, tt.maxAge)); got != tt.etf {
				t.Errorf("claims %s, want %s", got, tt.etf)
			}
			h, err := sign(tt.scheme, tt.key, tt.secret, tt.device, time.Unix(tt.time, 999), tt.maxAge)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{
				"x-nh-alg": tt.alg, "x-nh-key": tt.key, "x-nh-time": strconv.FormatInt(tt.time, 10), "x-nh-signature": tt.signature,
			} {
				if got := h.Get(name); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
			}
			if len(h) != 4 {
				t.Errorf("%d headers, want 4", len(h))
			}
		})
	}
}

func TestSaltOfTheFirstVector(t *testing.T) {
	want := "NH1:device-socket:shared-secret:connect\n\nx-nh-alg=NH1-HMAC-SHA256-1000-32\nx-nh-key=nhp_abc123\nx-nh-time=1787120842\n"
	if got := salt(scheme{"SHA256", sha256.New, 1000, 32}, "nhp_abc123", 1787120842); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func newSecret(t *testing.T) *SharedSecret {
	t.Helper()
	s, err := NewSharedSecret("nhp_key", "secret\n")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// signedAt is the time in the headers of a dial made now.
func signedAt(t *testing.T, s *SharedSecret) (at time.Time, notes []string) {
	t.Helper()
	c, err := s.Credentials(t.Context(), "dev-1")
	if err != nil {
		t.Fatal(err)
	}
	seconds, err := strconv.ParseInt(c.Header.Get("x-nh-time"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Unix(seconds, 0), c.Notes
}

func TestSignedPerDialInThePast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSecret(t)
		for range 3 {
			want := time.Now().Add(-5 * time.Second)
			if got, notes := signedAt(t, s); !got.Equal(want) || notes != nil {
				t.Errorf("signed at %s with notes %q, want %s and none", got, notes, want)
			}
			time.Sleep(90 * time.Second)
		}
	})
}

func TestServerDate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ahead time.Duration // the server's clock, of the local one
		used  bool
	}{
		{"in 1970", 26 * 365 * 24 * time.Hour, true},
		{"an hour behind", time.Hour, true},
		{"a minute ahead", -time.Minute, true},
		{"four seconds ahead", -4 * time.Second, true},
		{"three seconds ahead", -3 * time.Second, false},
		{"right", 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSecret(t)
				s.ServerDate(time.Now().Add(tt.ahead).Round(0).UTC(), time.Now())
				time.Sleep(10 * time.Minute)
				want := time.Now().Add(-5 * time.Second)
				if tt.used {
					want = want.Add(tt.ahead)
				}
				got, notes := signedAt(t, s)
				if !got.Equal(want) {
					t.Errorf("signed at %s, want %s", got, want)
				}
				if (len(notes) == 1) != tt.used {
					t.Errorf("notes %q", notes)
				}
			})
		})
	}
}

func TestLaterHintWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSecret(t)
		s.ServerDate(time.Now().Add(time.Hour), time.Now())
		s.ServerDate(time.Now().Add(time.Second), time.Now())
		if got, _ := signedAt(t, s); !got.Equal(time.Now().Add(-5 * time.Second)) {
			t.Errorf("signed at %s by a clock that had been right, want the local one", got)
		}
		s.ServerDate(time.Time{}, time.Now())
		if got, _ := signedAt(t, s); !got.Equal(time.Now().Add(-5 * time.Second)) {
			t.Errorf("signed at %s after a refusal without a date", got)
		}
	})
}

// The wall clock was a day behind when the server's date was read, and then
// somebody set it.
func TestClockSetAfterTheHint(t *testing.T) {
	date := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	hint := serverDate{date: date}
	if now, off := hint.clock(date.Add(time.Minute).AddDate(0, 0, -1), time.Minute); !now.Equal(date.Add(time.Minute)) || off != -24*time.Hour {
		t.Errorf("before: %s, %s off", now, off)
	}
	set := date.Add(2*time.Minute + time.Second)
	if now, off := hint.clock(set, 2*time.Minute); !now.Equal(set) || off != 0 {
		t.Errorf("after: %s, %s off", now, off)
	}
}

func TestClockBefore1970(t *testing.T) {
	h, err := sign(current, "nhp_key", "secret", "dev-1", time.Unix(-5, 0), maxAge)
	if err != nil || h.Get("x-nh-time") != "0" {
		t.Errorf("x-nh-time %q (%v), want 0", h.Get("x-nh-time"), err)
	}
}

func TestNewSharedSecret(t *testing.T) {
	for _, tt := range []struct{ key, secret, want string }{
		{"nhp_a+b/c", "s", ""},
		{"nhd_a", "s\r\n", ""},
		{"", "s", "begins neither with"},
		{"secret-by-mistake", "s", "begins neither with"},
		{"nhp_a b", "s", "blanks"},
		{"nhp_a\r\nx-evil: 1", "s", "blanks"},
		{"nhp_a", "", "empty"},
		{"nhp_a", "\n", "empty"},
		{"nhp_a", "one\ntwo", "on one line"},
		{"nhp_a", " s", "blanks"},
		{"nhp_a", "\xff", "unusual"},
	} {
		_, err := NewSharedSecret(tt.key, tt.secret)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q, %q: got %v, want %q", tt.key, tt.secret, err, tt.want)
		}
		if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "by-mistake")) {
			t.Errorf("not for a log: %q", err)
		}
	}
}

func TestSharedSecretPrintsNoSecret(t *testing.T) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, newSecret(t)); got != "<shared secret>" {
			t.Errorf("%s printed %q", verb, got)
		}
	}
}
