package hubtest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// A line is one line of a recording.
type line struct {
	T     float64           `json:"t"` // seconds since the start of the file
	Kind  string            `json:"kind"`
	Dir   string            `json:"dir"`
	Text  string            `json:"text"`
	Frame []json.RawMessage `json:"frame"`

	do func(w *world) // an operator's action, not part of the recording
}

func readLines(t *testing.T, name string) []line {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "transcripts", name+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []line
	for text := range bytes.Lines(b) {
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		lines = append(lines, l)
	}
	return lines
}

func (l line) event() string {
	if len(l.Frame) != 5 {
		return ""
	}
	var event string
	json.Unmarshal(l.Frame[3], &event)
	return event
}

// A replay plays one recording against a hub. What the client said is said
// again at the recorded times; what the server said must come, in the recorded
// order and close to the recorded times. Only `update` may come earlier or
// later than its neighbours: the orchestrator is a process of its own.
type replay struct {
	w     *world
	p     part
	lines []line
	c     *client
	start time.Time
	drift time.Duration // how much later than recorded we are

	stash []arrival         // updates that came before their turn
	refs  map[string]string // recorded refs of scripts to ours
}

type arrival struct {
	text string
	at   time.Time
}

// How far from the recorded time a frame may come.
const (
	windowOfUpdates = 3200 * time.Millisecond // the orchestrator looks every 3 s
	windowOfOthers  = 250 * time.Millisecond  // the recorder shared two cores with the server
)

func (w *world) play(p part) {
	w.t.Helper()
	r := &replay{w: w, p: p, refs: map[string]string{}}
	for _, a := range p.actions {
		r.lines = append(r.lines, line{T: a.at, Kind: "action", do: a.do})
	}
	r.lines = append(r.lines, readLines(w.t, p.file)...)
	slices.SortStableFunc(r.lines, func(a, b line) int { return cmp.Compare(a.T, b.T) }) // actions come first
	r.start = time.Now()
	for i, l := range r.lines {
		r.step(i, l)
	}
	if len(r.stash) > 0 {
		w.t.Errorf("%s: not recorded: %v", p.file, r.stash)
	}
}

func (r *replay) due(l line) time.Time {
	return r.start.Add(r.drift + time.Duration(l.T*float64(time.Second)))
}

func (r *replay) step(i int, l line) {
	t := r.w.t
	t.Helper()
	if l.Dir == "up" || l.do != nil || l.Kind == "closed" {
		time.Sleep(time.Until(r.due(l)))
	}
	switch {
	case l.do != nil:
		l.do(r.w)
	case l.Kind == "http-request":
		r.connect(l.Text)
	case l.Kind == "text" && l.Dir == "up":
		r.c.send(r.substitute(l.Frame))
	case l.Kind == "rawtext":
		r.c.send(l.Text)
	case l.Kind == "ping":
		r.c.ws.WriteControl(websocket.PingMessage, []byte("x"), time.Now().Add(time.Second))
	case l.Kind == "pong":
		if got := <-r.c.pongs; got != l.Text {
			t.Errorf("%s: pong %q, want %q", r.p.file, got, l.Text)
		}
	case l.Kind == "text":
		r.expect(i, l)
	case l.Kind == "closed":
		r.closed(l)
	}
}

// closed ends the connection as it was ended: by the client, or by the server.
func (r *replay) closed(l line) {
	t := r.w.t
	t.Helper()
	want := "cut"
	switch {
	case strings.Contains(l.Text, "use of closed network connection"):
		r.c.ws.NetConn().Close() // the client's doing
	case strings.Contains(l.Text, "close 1000"):
		r.c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
		want = "close 1000"
	case !strings.Contains(l.Text, "close 1006"): // 1006 is the client library's word for a cut
		_, code, _ := strings.Cut(l.Text, "websocket: ")
		want = strings.Join(strings.Fields(code)[:2], " ")
	}
	got := r.c.next(time.Until(r.due(l).Add(windowOfOthers)))
	if strings.Contains(got, "extensions:get") && want == "close 1000" {
		got = r.c.next(windowOfOthers) // the client of o01d closed before it was sent
	}
	if got != want {
		t.Fatalf("%s: ended with %q at %.3f s, want %q", r.p.file, got, l.T, want)
	}
	<-r.c.done
}

// expect waits for a recorded frame.
func (r *replay) expect(i int, l line) {
	t := r.w.t
	t.Helper()
	early, late := windowOfOthers, windowOfOthers
	if l.event() == "update" {
		early, late = max(r.p.early, windowOfUpdates), max(r.p.late, windowOfUpdates)
	}
	for j, a := range r.stash {
		if r.matches(l, a.text) {
			r.stash = slices.Delete(r.stash, j, j+1)
			r.arrived(l, a.at, early)
			return
		}
	}
	for {
		text := r.c.next(time.Until(r.due(l).Add(late)))
		switch {
		case text == "":
			t.Fatalf("%s at %.3f s: nothing came, want %s", r.p.file, l.T, l.Frame)
		case r.matches(l, text):
			r.arrived(l, time.Now(), early)
			return
		case !r.later(i, text):
			t.Fatalf("%s at %.3f s:\n got %s\nwant %s", r.p.file, l.T, text, l.Frame)
		}
		r.stash = append(r.stash, arrival{text, time.Now()})
	}
}

func (r *replay) arrived(l line, at time.Time, early time.Duration) {
	r.w.t.Helper()
	if at.Before(r.due(l).Add(-early)) {
		r.w.t.Errorf("%s: %s came %v before its time of %.3f s", r.p.file, l.event(), r.due(l).Sub(at), l.T)
	}
	if d := at.Sub(r.due(l)); d > 0 {
		r.drift += d
	}
}

// later says whether a frame is an update that is recorded further on.
func (r *replay) later(i int, text string) bool {
	return slices.ContainsFunc(r.lines[i+1:], func(l line) bool {
		return l.Dir == "down" && l.event() == "update" && r.matches(l, text)
	})
}

// matches compares all of a frame, apart from the refs of scripts.
func (r *replay) matches(l line, text string) bool {
	var got, want []any
	if json.Unmarshal([]byte(text), &got) != nil || len(got) != 5 {
		return false
	}
	b, _ := json.Marshal(l.Frame)
	json.Unmarshal(b, &want)
	if got[3] == "scripts/run" && want[3] == "scripts/run" {
		g, w := got[4].(map[string]any), want[4].(map[string]any)
		if w["ref"] != "connecting_code" {
			r.refs[w["ref"].(string)] = g["ref"].(string)
			g["ref"] = w["ref"]
		}
	}
	return reflect.DeepEqual(got, want)
}

func (r *replay) substitute(frame []json.RawMessage) string {
	b, _ := json.Marshal(frame)
	for recorded, ours := range r.refs {
		b = bytes.ReplaceAll(b, []byte(`"`+recorded+`"`), []byte(`"`+ours+`"`))
	}
	return string(b)
}

// connect sends the recorded upgrade request: its path, and its shared secret
// signed anew, because the recorded signature is long out of date.
func (r *replay) connect(request string) {
	t := r.w.t
	t.Helper()
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request)))
	if err != nil {
		t.Fatal(err)
	}
	listener, scheme := r.w.dials, "wss"
	if strings.HasPrefix(req.URL.Path, "/api/") {
		listener, scheme = r.w.web, "ws"
	}
	d := websocket.Dialer{
		NetDialContext:  func(ctx context.Context, n, a string) (net.Conn, error) { return listener.Dial(ctx, n, a) },
		TLSClientConfig: &tls.Config{RootCAs: r.w.roots, ServerName: "localhost", NextProtos: []string{"http/1.1"}},
	}
	header := http.Header{}
	if key := req.Header.Get("X-Nh-Key"); key != "" {
		r.w.cfg.Auth.AddSecret(key, replaySecret, "")
		header = signed(key, r.p.device)
	} else {
		leaf, err := r.w.leaf(r.p.device)
		if err != nil {
			t.Fatal(err)
		}
		d.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf, nil }
	}
	ws, res, err := d.Dial(scheme+"://localhost"+req.URL.RequestURI(), header)
	if err != nil {
		t.Fatalf("%s: %v (%v)", r.p.file, err, res)
	}
	r.c = r.w.read(ws)
}

const replaySecret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I"

// signed makes the headers of a shared secret: an Erlang term
// {id, milliseconds, max_age} under a key derived with the alg's parameters.
func signed(key, id string) http.Header {
	const alg = "NH1-HMAC-sha256-1000-32"
	at := time.Now().Add(-5 * time.Second)
	seconds := strconv.FormatInt(at.Unix(), 10)
	salt := "NH1:device-socket:shared-secret:connect\n\nx-nh-alg=" + alg + "\nx-nh-key=" + key + "\nx-nh-time=" + seconds + "\n"
	signing, err := pbkdf2.Key(sha256.New, replaySecret, []byte(salt), 1000, 32)
	if err != nil {
		panic(err)
	}
	term := binary.BigEndian.AppendUint32([]byte{0x83, 0x68, 3, 0x6d}, uint32(len(id)))
	term = append(append(term, id...), 0x6e, 6, 0)
	term = append(term, binary.LittleEndian.AppendUint64(nil, uint64(at.Unix()*1000))[:6]...)
	term = append(term, 0x62, 0, 1, 0x51, 0x80)
	text := "SFMyNTY." + base64.RawURLEncoding.EncodeToString(term)
	mac := hmac.New(sha256.New, signing)
	mac.Write([]byte(text))
	return http.Header{
		"X-Nh-Alg": {alg}, "X-Nh-Key": {key}, "X-Nh-Time": {seconds},
		"X-Nh-Signature": {text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))},
	}
}

// recorded is what the recordings tell of the product: its keys, firmware and archive.
type recorded struct {
	keys     []string
	firmware map[string]Firmware
	archive  Archive
	groupID  map[string]int // by recording
}

var product = sync.OnceValue(func() recorded {
	p := recorded{firmware: map[string]Firmware{}, groupID: map[string]int{}}
	names, err := filepath.Glob("testdata/transcripts/*.jsonl")
	settled, err2 := filepath.Glob("testdata/transcripts/settled/*.jsonl")
	if err != nil || err2 != nil {
		panic("glob")
	}
	for _, name := range append(names, settled...) {
		b, err := os.ReadFile(name)
		if err != nil {
			panic(err)
		}
		file := strings.TrimSuffix(strings.TrimPrefix(filepath.ToSlash(name), "testdata/transcripts/"), ".jsonl")
		for text := range bytes.Lines(b) {
			var l line
			json.Unmarshal(text, &l)
			if l.Dir == "down" {
				p.learn(file, l)
			}
		}
	}
	return p
})

func (p *recorded) learn(file string, l line) {
	switch l.event() {
	case "fwup_public_keys":
		var v struct{ Keys []string }
		json.Unmarshal(l.Frame[4], &v)
		p.keys = v.Keys
	case "archive":
		var v struct {
			UUID, Version, Platform, Architecture, Description string
			Size                                               int
			UploadedAt                                         string `json:"uploaded_at"`
		}
		json.Unmarshal(l.Frame[4], &v)
		at, err := time.Parse("2006-01-02T15:04:05", v.UploadedAt)
		if err != nil {
			panic(err)
		}
		p.archive = Archive{
			UUID: v.UUID, Version: v.Version, Platform: v.Platform, Architecture: v.Architecture,
			Description: v.Description, Size: v.Size, UploadedAt: at,
		}
	case "update":
		var v struct {
			Firmware   Firmware `json:"firmware_meta"`
			URL        string   `json:"firmware_url"`
			Size       int
			Checksum   string
			Partials   []string `json:"partials_checksums"`
			Deployment int      `json:"deployment_id"`
		}
		json.Unmarshal(l.Frame[4], &v)
		var vcs struct {
			Meta struct {
				VCS string `json:"vcs_identifier"`
			} `json:"firmware_meta"`
		}
		json.Unmarshal(l.Frame[4], &vcs)
		f := v.Firmware
		f.VCSIdentifier = vcs.Meta.VCS
		f.Size, f.Checksum, f.Partials, f.Extension = v.Size, v.Checksum, v.Partials, path.Ext(v.URL)[1:]
		p.firmware[f.UUID] = f
		if v.Deployment != 0 {
			p.groupID[file] = v.Deployment
		}
	}
}
