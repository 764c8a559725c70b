package auth

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A recording is one file of testdata: what a NervesHub answered to one
// attempt at a connection.
type recording struct {
	note       string
	requestCAs int // acceptable CAs the server listed; -1 if it was not asked
	tls        string
	alert      string // text of a TLS refusal
	request    string
	status     int // 0 if there was no answer
	header     http.Header
	body       string
}

func readRecording(t *testing.T, name string) recording {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	rec := recording{requestCAs: -1}
	for line := range bytes.Lines(b) {
		var l struct {
			Kind, Text, Version, Body string
			AcceptableCAs             int `json:"acceptable_cas"`
			Headers                   http.Header
		}
		// The frames after a 101 are lists under "frame"; they are not read here.
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		switch l.Kind {
		case "note":
			if rec.note == "" {
				rec.note = l.Text
			}
		case "tls-cert-request":
			rec.requestCAs = l.AcceptableCAs
		case "tls":
			rec.tls = l.Version
		case "http-request":
			rec.request = l.Text
		case "http-response":
			rec.status = recordedStatus(t, l.Text)
		case "tls-error", "dial-error":
			if strings.HasPrefix(l.Text, "remote error: tls:") {
				rec.alert = l.Text
			}
			rec.header, rec.body = l.Headers, l.Body
		}
	}
	return rec
}

func recordedStatus(t *testing.T, text string) int {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode
}

// The secret behind every key of the recordings, as far as this test goes: the
// real ones are unknown, so recorded tokens are signed again over their claims.
const replaySecret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I"

var replayKeys = []string{
	"nhp_4us9TlhhSDqxO4InYXWXJCMt0gbf853X0dS7/JMVAZE",
	"nhp_+GKxBkXjyubPs1rZolfl/rNQpadOmJ415XNXgWoTQYQ",
}

// resign returns the recorded token with a MAC of ours. As when the recordings
// were made, the salt has the default algorithm whatever the header says.
func resign(token, key string, at int64, secret string) string {
	part := strings.Split(token, ".")
	if len(part) != 3 || len(part[2]) != 43 {
		return token
	}
	salt := "NH1:device-socket:shared-secret:connect\n\nx-nh-alg=NH1-HMAC-sha256-1000-32\nx-nh-key=" + key +
		"\nx-nh-time=" + strconv.FormatInt(at, 10) + "\n"
	k, err := pbkdf2.Key(sha256.New, secret, []byte(salt), 1000, 32)
	if err != nil {
		panic(err)
	}
	m := hmac.New(sha256.New, k)
	m.Write([]byte(part[0] + "." + part[1]))
	return part[0] + "." + part[1] + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// signedAt is when a recorded token was made; the zero time if it is none.
func signedAt(token string) time.Time {
	part := strings.Split(token, ".")
	if len(part) != 3 {
		return time.Time{}
	}
	b, _ := base64.RawURLEncoding.DecodeString(part[1])
	c, err := decodeClaims(b)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(c.signedAt)
}

// An attempt is how a client of the recordings presents itself.
type attempt struct {
	leaf     *Leaf
	byIssuer bool // tls.Config.Certificates, where Go looks at the CA names
	secret   string
	skew     time.Duration // client's clock minus server's
	plain    bool
}

// A world is one server of the recordings.
type world struct {
	*Registry
	t        *testing.T
	addr     string
	web      string // without TLS
	roots    *x509.CertPool
	now      atomic.Int64 // Unix milliseconds, for the headers' check
	ca, jitp *CA
	rogue    *CA
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Registry: New(), t: t, ca: must(NewCA("gw"))(t), jitp: must(NewCA("jitp"))(t), rogue: must(NewCA("rogue"))(t)}
	for _, k := range replayKeys {
		w.AddSecret(k, replaySecret, "")
	}
	if err := errors.Join(w.AddCA(w.ca.Certificate, false), w.AddCA(w.jitp.Certificate, true)); err != nil {
		t.Fatal(err)
	}
	server, root, err := NewServerCertificate("localhost")
	if err != nil {
		t.Fatal(err)
	}
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(root)

	handler := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		id, refusal := w.Authenticate(req, time.UnixMilli(w.now.Load()))
		if refusal != nil {
			refusal.ServeHTTP(rw, req)
			return
		}
		io.WriteString(rw, id)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	srv := httptest.NewUnstartedServer(handler)
	srv.Listener.Close()
	srv.Listener = tls.NewListener(Listener(l), w.TLS(server, nil))
	srv.Config.ErrorLog = quiet()
	srv.Start()
	t.Cleanup(srv.Close)
	web := httptest.NewServer(handler)
	t.Cleanup(web.Close)
	w.web = web.Listener.Addr().String()
	return w
}

// replay makes the attempt and compares what came of it with the recording.
func (w *world) replay(name string, a attempt) {
	w.t.Helper()
	rec := readRecording(w.t, name)
	got := w.dial(w.t, rec, a)
	want := recording{note: rec.note, requestCAs: rec.requestCAs, tls: rec.tls, alert: rec.alert, request: rec.request,
		status: rec.status, header: rec.header, body: rec.body}
	if want.status == http.StatusSwitchingProtocols {
		want.status, want.header = http.StatusOK, nil // package hubtest switches protocols
	}
	if want.header != nil {
		want.header.Set("Date", "masked")
	}
	if !reflect.DeepEqual(got, want) {
		w.t.Errorf("%s (%s)\n got %+v\nwant %+v", name, rec.note, got, want)
	}
}

func (w *world) dial(t *testing.T, rec recording, a attempt) recording {
	t.Helper()
	got := recording{note: rec.note, request: rec.request, requestCAs: -1}
	addr := w.addr
	if a.plain {
		addr = w.web
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if !a.plain {
		tc := tls.Client(c, w.clientConfig(a, &got))
		if err := tc.Handshake(); err != nil {
			got.alert = err.Error()
			return got
		}
		got.tls = tls.VersionName(tc.ConnectionState().Version)
		c = tc
	}
	if _, err := io.WriteString(c, w.prepare(rec.request, a)); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		got.alert = err.Error() // TLS 1.3: the first read tells
		return got
	}
	defer res.Body.Close()
	got.status = res.StatusCode
	if res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		got.body, got.header = string(body), maps.Clone(res.Header)
		got.header.Set("Date", "masked")
	}
	return got
}

func (w *world) clientConfig(a attempt, got *recording) *tls.Config {
	cfg := &tls.Config{RootCAs: w.roots, ServerName: "localhost", NextProtos: []string{"http/1.1"}}
	switch {
	case a.leaf == nil:
	case a.byIssuer:
		cfg.Certificates = []tls.Certificate{a.leaf.Cert}
	default:
		cfg.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			got.requestCAs = len(info.AcceptableCAs)
			return &a.leaf.Cert, nil
		}
	}
	return cfg
}

// prepare signs the recorded request again and sets the server's clock.
func (w *world) prepare(text string, a attempt) string {
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		w.t.Fatal(err)
	}
	token := req.Header.Get("X-Nh-Signature")
	at := signedAt(token)
	// Setting up the recorded connections took a few milliseconds.
	w.now.Store(at.Add(2*time.Millisecond - a.skew).UnixMilli())
	if token == "" {
		return text
	}
	secret := replaySecret
	if a.secret != "" {
		secret = a.secret
	}
	// A header that a case withholds or garbles is not what was signed.
	seconds := at.Unix()
	key := req.Header.Get("X-Nh-Key")
	if key == "" {
		key = replayKeys[1]
	}
	return strings.Replace(text, token, resign(token, key, seconds, secret), 1)
}
