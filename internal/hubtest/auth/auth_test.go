package auth

import (
	"io"
	"log"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// must returns a value that fails the test if it came with an error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *world) leaf(ca *CA, cn string, o LeafOptions) *Leaf {
	w.t.Helper()
	l := must(ca.IssueWith(cn, o))(w.t)
	return &l
}

func (w *world) upload(id string, l *Leaf) {
	w.t.Helper()
	if err := w.StoreCertificate(id, l.Cert.Certificate[0]); err != nil {
		w.t.Fatal(err)
	}
}

// recordings lists the files of a prefix and fails if there are none.
func recordings(t *testing.T, prefix string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", prefix+"*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings %s: %v", prefix, err)
	}
	for _, f := range files {
		names = append(names, filepath.Base(f))
	}
	return names
}

func TestRecordedAuthentication(t *testing.T) {
	mtls := func(w *world) attempt {
		w.AddDevice("mtls-1")
		return attempt{leaf: w.leaf(w.ca, "mtls-1", LeafOptions{})}
	}
	cases := map[string]func(*world) attempt{
		"badsig":             func(w *world) attempt { return attempt{secret: "wrong"} },
		"cert-and-hmac":      mtls,
		"compress":           mtls,
		"device-socket-path": mtls,
		"go-default-certselect": func(w *world) attempt {
			a := mtls(w)
			a.byIssuer = true
			return a
		},
		"jitp":                       func(w *world) attempt { return attempt{leaf: w.leaf(w.jitp, "jitp-1", LeafOptions{})} },
		"join-device-id-topic":       mtls,
		"join-device-id-topic-other": mtls,
		"none":                       func(w *world) attempt { return attempt{} },
		"novsn":                      mtls,
		"plain-ws":                   func(w *world) attempt { return attempt{plain: true} },
		"second-key": func(w *world) attempt {
			a := mtls(w)
			w.upload("mtls-1", w.leaf(w.ca, "mtls-1", LeafOptions{}))
			return a
		},
		"skew-future-600": func(w *world) attempt { return attempt{skew: 600 * time.Second} },
		"skew-past-100":   func(w *world) attempt { return attempt{skew: -100 * time.Second} },
		"tls13":           mtls,
		"tls13server-go-default": func(w *world) attempt {
			w.EnableTLS13()
			a := mtls(w)
			a.byIssuer = true
			return a
		},
		"tls13server-ok": func(w *world) attempt { w.EnableTLS13(); return mtls(w) },
		"tls13server-rogue": func(w *world) attempt {
			w.EnableTLS13()
			w.AddDevice("mtls-1")
			return attempt{leaf: w.leaf(w.rogue, "mtls-1", LeafOptions{})}
		},
		"unknown-ca": func(w *world) attempt {
			w.AddDevice("mtls-1")
			return attempt{leaf: w.leaf(w.rogue, "mtls-1", LeafOptions{})}
		},
		"unknownkey":          func(w *world) attempt { return attempt{} },
		"unregistered-device": func(w *world) attempt { return attempt{leaf: w.leaf(w.ca, "nobody", LeafOptions{})} },
		"vsn1":                mtls,
	}
	for _, name := range recordings(t, "20-auth-") {
		short := strings.TrimSuffix(strings.TrimPrefix(name, "20-auth-"), ".jsonl")
		t.Run(short, func(t *testing.T) {
			prepare, ok := cases[short]
			if !ok {
				t.Fatalf("no case for %s", name)
			}
			w := newWorld(t)
			w.replay(name, prepare(w))
		})
	}
}

// Odd leaves, before and after their upload.
func TestRecordedOddLeaves(t *testing.T) {
	const id = "odd-1"
	own, other := []byte("own key identifier.."), []byte("some other identifer")
	leaves := map[string]func(*world) *Leaf{
		"otherca": func(w *world) *Leaf { return w.leaf(w.rogue, id, LeafOptions{}) },
		"self": func(w *world) *Leaf {
			return w.leaf(w.rogue, id, LeafOptions{SelfIssuer: id, SubjectKeyID: own})
		},
		"selfakid": func(w *world) *Leaf {
			return w.leaf(w.rogue, id, LeafOptions{SelfIssuer: id, SubjectKeyID: own, AuthorityKeyID: other})
		},
		"selfiss": func(w *world) *Leaf {
			return w.leaf(w.rogue, id, LeafOptions{SelfIssuer: "myself", SubjectKeyID: own})
		},
		"selfissd": func(w *world) *Leaf {
			return w.leaf(w.rogue, id, LeafOptions{SelfIssuer: "myself", SubjectKeyID: own, AuthorityKeyID: other})
		},
	}
	for _, name := range recordings(t, "o03-") {
		t.Run(name, func(t *testing.T) {
			kind, state, _ := strings.Cut(strings.TrimPrefix(name, "o03-"), "-")
			w := newWorld(t)
			w.AddDevice(id)
			l := leaves[kind](w)
			if strings.HasPrefix(state, "stored") {
				w.upload(id, l)
			}
			if strings.Contains(state, "tls13") {
				w.EnableTLS13()
			}
			w.replay(name, attempt{leaf: l})
		})
	}
}

// One key, four certificates, in the order of the recordings.
func TestRecordedRenewals(t *testing.T) {
	const id = "renew-1"
	w := newWorld(t)
	w.AddDevice(id)
	key := must(newKey())(t)
	var c [5]*Leaf
	for i := range c {
		c[i] = w.leaf(w.ca, id, LeafOptions{Key: key})
	}
	w.replay("o04-samekey-cert1.jsonl", attempt{leaf: c[1]})
	w.replay("o04-samekey-cert2.jsonl", attempt{leaf: c[2]})
	w.replay("o04-samekey-cert3.jsonl", attempt{leaf: c[3]})
	w.replay("o04-samekey-cert1-again.jsonl", attempt{leaf: c[1]})
	w.replay("o04-samekey-cert2-again.jsonl", attempt{leaf: c[2]})
	w.upload(id, c[3])
	w.replay("o04-samekey-cert3-after-upload.jsonl", attempt{leaf: c[3]})
	w.replay("o04-samekey-cert4-with-three-stored.jsonl", attempt{leaf: c[4]})
	newKey := w.leaf(w.ca, id, LeafOptions{})
	w.upload(id, newKey)
	w.replay("o04-newkey-after-upload.jsonl", attempt{leaf: newKey})
	for _, i := range []int{1, 2} {
		if !w.DeleteCertificate(id, c[i].Cert.Leaf.SerialNumber.String()) {
			t.Fatalf("certificate %d was not stored", i)
		}
	}
	w.replay("o04-samekey-cert4-one-stored.jsonl", attempt{leaf: c[4]})
	if n := len(recordings(t, "o04-")); n != 9 {
		t.Errorf("%d recordings, 9 replayed", n)
	}
}

func TestRecordedHeaders(t *testing.T) {
	for _, prefix := range []string{"o06-", "o07-", "o08-hmac-"} {
		for _, name := range recordings(t, prefix) {
			t.Run(name, func(t *testing.T) {
				a := attempt{plain: strings.HasPrefix(name, "o06-web-")}
				if ms, ok := strings.CutPrefix(name, "o07-skew"); ok {
					skew, err := time.ParseDuration(strings.TrimSuffix(ms, ".jsonl"))
					if err != nil {
						t.Fatal(err)
					}
					a.skew = skew
				}
				w := newWorld(t)
				w.replay(name, a)
			})
		}
	}
}

func TestRecordedCommonNames(t *testing.T) {
	for _, name := range recordings(t, "o08-jitp-") {
		t.Run(name, func(t *testing.T) {
			cn := "züri λ/7 #+"
			if n, ok := strings.CutPrefix(name, "o08-jitp-cn"); ok && n[0] != '-' {
				cn = strings.Repeat("c", atoi(t, strings.TrimSuffix(n, ".jsonl")))
			}
			w := newWorld(t)
			w.replay(name, attempt{leaf: w.leaf(w.jitp, cn, LeafOptions{})})
		})
	}
	t.Run("preregistered", func(t *testing.T) {
		w := newWorld(t)
		cn := strings.Repeat("p", 120)
		w.AddDevice(cn)
		w.replay("o08-preregistered-cn120.jsonl", attempt{leaf: w.leaf(w.ca, cn, LeafOptions{})})
	})
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	return must(strconv.Atoi(s))(t)
}
