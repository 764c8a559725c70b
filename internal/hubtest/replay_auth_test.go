package hubtest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"ganglion/internal/hubtest/auth"
	"ganglion/internal/memnet"
)

// An authCase is how the client of a recording presented itself, and to whom.
type authCase struct {
	leaf     func(w *authWorld) auth.Leaf // nil: no certificate
	byIssuer bool                         // tls.Config.Certificates, where Go looks at the CA names
	secret   string                       // signs recorded tokens anew; the product's if empty
	skew     time.Duration                // client's clock minus server's
	web      bool                         // plain HTTP, on the web endpoint
	deflate  bool                         // permessage-deflate is offered; the stand-in never takes it
	tls13    bool
	archive  bool // the group had one by then
}

// An authWorld is a world with the authorities of the recordings: gw introduces
// devices that exist, the world's own creates them, rogue is not registered.
type authWorld struct {
	*world
	gw, rogue *auth.CA
}

func (w *authWorld) issue(ca *auth.CA, id string) auth.Leaf {
	w.t.Helper()
	l, err := ca.Issue(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// mtls1 is a certificate of the device the recordings know.
func mtls1(w *authWorld) auth.Leaf { return w.issue(w.gw, "mtls-1") }

var authCases = map[string]authCase{
	"badsig":                     {secret: "wrong"},
	"cert-and-hmac":              {leaf: mtls1},
	"compress":                   {leaf: mtls1, deflate: true},
	"device-socket-path":         {leaf: mtls1},
	"go-default-certselect":      {leaf: mtls1, byIssuer: true},
	"jitp":                       {leaf: func(w *authWorld) auth.Leaf { return w.issue(w.ca, "jitp-1") }},
	"join-device-id-topic":       {leaf: mtls1},
	"join-device-id-topic-other": {leaf: mtls1},
	"none":                       {},
	"novsn":                      {leaf: mtls1},
	"plain-ws":                   {web: true},
	"second-key": {leaf: func(w *authWorld) auth.Leaf {
		first := mtls1(w)
		if err := w.cfg.Auth.StoreCertificate("mtls-1", first.Cert.Certificate[0]); err != nil {
			w.t.Fatal(err)
		}
		return mtls1(w)
	}},
	"skew-future-600":        {skew: 600 * time.Second},
	"skew-past-100":          {skew: -100 * time.Second},
	"tls13":                  {leaf: mtls1},
	"tls13server-go-default": {leaf: mtls1, byIssuer: true, tls13: true, archive: true},
	"tls13server-ok":         {leaf: mtls1, tls13: true, archive: true},
	"tls13server-rogue":      {leaf: func(w *authWorld) auth.Leaf { return w.issue(w.rogue, "mtls-1") }, tls13: true},
	"unknown-ca":             {leaf: func(w *authWorld) auth.Leaf { return w.issue(w.rogue, "mtls-1") }},
	"unknownkey":             {},
	"unregistered-device":    {leaf: func(w *authWorld) auth.Leaf { return w.issue(w.gw, "nobody") }},
	"vsn1":                   {leaf: mtls1},
}

// The recordings of authentication, from the first TLS byte to the last frame.
// Package auth replays the connecting alone, these and many more.
func TestReplayAuth(t *testing.T) {
	files, err := filepath.Glob("auth/testdata/20-auth-*.jsonl")
	if err != nil || len(files) != len(authCases) {
		t.Fatalf("%d recordings for %d cases: %v", len(files), len(authCases), err)
	}
	keys() // made outside, with real time
	for name, c := range authCases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { replayAuth(t, "../../auth/testdata/20-auth-"+name, c) })
		})
	}
}

func replayAuth(t *testing.T, file string, c authCase) {
	lines := readLines(t, file)
	token := recordedHeader(t, lines, "X-Nh-Signature")
	if at := tokenTime(token); !at.IsZero() {
		// The recorded connections took a few milliseconds to come up.
		time.Sleep(time.Until(at.Add(2*time.Millisecond - c.skew)))
	}
	p := product()
	w := &authWorld{world: newWorld(t, Config{Keys: p.keys, WebURL: "http://localhost:14000"})}
	defer w.end()
	w.prepare(c)
	synctest.Wait() // the endpoints are up
	r := &replay{w: w.world, p: part{file: file}, lines: lines, refs: map[string]string{}, start: time.Now()}
	w.connect(r, c)
	for i, l := range lines {
		if l.Kind == "text" || l.Kind == "closed" {
			r.step(i, l)
		}
	}
}

func (w *authWorld) prepare(c authCase) {
	var err error
	if w.gw, err = auth.NewCA("gw"); err != nil {
		w.t.Fatal(err)
	}
	if w.rogue, err = auth.NewCA("rogue"); err != nil {
		w.t.Fatal(err)
	}
	if err := w.cfg.Auth.AddCA(w.gw.Certificate, false); err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Auth.AddSecret("nhp_4us9TlhhSDqxO4InYXWXJCMt0gbf853X0dS7/JMVAZE", replaySecret, "")
	if c.tls13 {
		w.cfg.Auth.EnableTLS13()
	}
	w.AddDevice("mtls-1") // device:1
	w.AddDevice("other")  // device:2
	w.AddFirmware(product().firmware[uuid110])
	if c.archive {
		if err := w.SetRelease(uuid110); err != nil {
			w.t.Fatal(err)
		}
		w.SetArchive(product().archive)
		w.edit("mtls-1", func(d *device) { d.meta, d.grouped, d.validation = on110, true, "validated" })
	}
}

// connect makes the recorded attempt. A refusal is compared with the recorded
// one; else the replay goes on with the frames.
func (w *authWorld) connect(r *replay, c authCase) {
	w.t.Helper()
	dialer, asked := w.dialer(c)
	uri, header := "/socket/websocket?vsn=2.0.0", http.Header{}
	if request := recordedText(r.lines, "http-request"); request != "" {
		uri, header = w.request(request, c)
	}
	scheme := "wss"
	if c.web {
		scheme = "ws"
	}
	ws, res, err := dialer.Dial(scheme+"://localhost"+uri, header)
	cas, body := recordedEnds(w.t, r.p.file)
	if *asked != cas {
		w.t.Errorf("the server listed %d authorities, want %d", *asked, cas)
	}
	want := recordedText(r.lines, "dial-error")
	switch {
	case err == nil && want == "":
		if got := res.StatusCode; got != http.StatusSwitchingProtocols {
			w.t.Errorf("status %d", got)
		}
		r.c = w.read(ws)
	case err == nil || err.Error() != want:
		w.t.Fatalf("dial: %v, want %q", err, want)
	default:
		compareRefusal(w.t, r.lines, res, body)
	}
}

func (w *authWorld) dialer(c authCase) (d *websocket.Dialer, askedCAs *int) {
	askedCAs = new(int)
	listener := w.dials
	if c.web {
		listener = w.web
	}
	cfg := &tls.Config{RootCAs: w.roots, ServerName: "localhost", NextProtos: []string{"http/1.1"}}
	if c.leaf != nil {
		leaf := c.leaf(w).Cert
		if c.byIssuer {
			cfg.Certificates = []tls.Certificate{leaf}
		} else {
			cfg.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				*askedCAs = len(info.AcceptableCAs)
				return &leaf, nil
			}
		}
	}
	return &websocket.Dialer{NetDialContext: dialContext(listener), TLSClientConfig: cfg, EnableCompression: c.deflate}, askedCAs
}

func dialContext(l *memnet.Listener) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return l.Dial(ctx, network, address)
	}
}

// request returns the recorded request's path and its credentials, signed again
// over the recorded claims: the secret behind the recorded key is not known.
func (w *authWorld) request(text string, c authCase) (uri string, header http.Header) {
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		w.t.Fatal(err)
	}
	header = http.Header{}
	for name, values := range req.Header {
		if strings.HasPrefix(name, "X-") {
			header[name] = values
		}
	}
	if token := req.Header.Get("X-Nh-Signature"); token != "" {
		secret := c.secret
		if secret == "" {
			secret = replaySecret
		}
		header.Set("X-Nh-Signature", resign(w.t, token, req.Header, secret))
	}
	return req.URL.RequestURI(), header
}

func resign(t *testing.T, token string, h http.Header, secret string) string {
	t.Helper()
	salt := "NH1:device-socket:shared-secret:connect\n\n"
	for _, name := range []string{"x-nh-alg", "x-nh-key", "x-nh-time"} {
		salt += name + "=" + h.Get(name) + "\n"
	}
	key, err := pbkdf2.Key(sha256.New, secret, []byte(salt), 1000, 32)
	if err != nil {
		t.Fatal(err)
	}
	claims := token[:strings.LastIndexByte(token, '.')]
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(claims))
	return claims + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// tokenTime finds the milliseconds in a recorded token: a six-byte big integer
// (tag 110, length 6, positive) behind the identifier.
func tokenTime(token string) time.Time {
	part := strings.Split(token, ".")
	if len(part) != 3 {
		return time.Time{}
	}
	b, _ := base64.RawURLEncoding.DecodeString(part[1])
	i := strings.LastIndex(string(b), "\x6e\x06\x00")
	var ms int64
	for n := range 6 {
		ms |= int64(b[i+3+n]) << (8 * n)
	}
	return time.UnixMilli(ms)
}

func recordedText(lines []line, kind string) string {
	for _, l := range lines {
		if l.Kind == kind {
			return l.Text
		}
	}
	return ""
}

func recordedHeader(t *testing.T, lines []line, name string) string {
	t.Helper()
	text := recordedText(lines, "http-request")
	if text == "" {
		return ""
	}
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	return req.Header.Get(name)
}

// recordedEnds reads what other recordings have no use for: how many authorities
// the server listed, and the body of a refusal.
func recordedEnds(t *testing.T, file string) (cas int, body string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "transcripts", file+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for text := range bytes.Lines(b) {
		var l struct {
			CAs  int `json:"acceptable_cas"`
			Body string
		}
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatal(err)
		}
		cas, body = max(cas, l.CAs), body+l.Body
	}
	return cas, body
}

// compareRefusal compares status, headers and body, the date apart.
func compareRefusal(t *testing.T, lines []line, res *http.Response, wantBody string) {
	t.Helper()
	text := recordedText(lines, "http-response")
	if text == "" || res == nil {
		if text != "" || res != nil {
			t.Errorf("answer %v, recorded %q", res, text)
		}
		return
	}
	want, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), nil)
	if err != nil {
		t.Fatal(err)
	}
	want.Header.Set("Date", res.Header.Get("Date"))
	if res.Status != want.Status || !reflect.DeepEqual(res.Header, want.Header) || res.Header.Get("Date") == "" {
		t.Errorf("answered %s %v\n    want %s %v", res.Status, res.Header, want.Status, want.Header)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if string(body) != wantBody {
		t.Errorf("body %q, want %q", body, wantBody)
	}
}
