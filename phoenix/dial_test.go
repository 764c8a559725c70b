package phoenix_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/phoenix"

	"github.com/gorilla/websocket"
)

func TestRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requests := make(chan *http.Request, 10)
		config := serverTLS()
		config.NextProtos = []string{"h2", "http/1.1"}
		l := serve(t, config, func(w http.ResponseWriter, r *http.Request) {
			requests <- r
			talk(echo)(w, r)
		})
		var dialed string
		o := phoenix.Options{
			TLS: clientTLS(),
			NetDial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				dialed = network + " " + addr
				return l.Dial(ctx, network, addr)
			},
			Header:    http.Header{"X-Secret": {"s"}},
			UserAgent: "tester/1",
		}
		cache := tls.NewLRUClientSessionCache(10)
		o.TLS.NextProtos, o.TLS.ClientSessionCache, o.TLS.MinVersion = []string{"h2"}, cache, tls.VersionTLS10
		for range 2 {
			c, err := phoenix.Dial(t.Context(), "wss://hub.test/a/websocket?x=1&vsn=9", o)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Write(hello); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(); err != nil { // by now a session ticket would have arrived
				t.Fatal(err)
			}
			c.Close()
			r := <-requests
			if want := (url.Values{"vsn": {"2.0.0"}, "x": {"1"}}); r.URL.Path != "/a/websocket" || !reflect.DeepEqual(r.URL.Query(), want) {
				t.Errorf("asked for %v", r.URL)
			}
			if r.Host != "hub.test" || r.TLS.ServerName != "hub.test" || dialed != "tcp hub.test:443" {
				t.Errorf("Host %q, server name %q, dialed %q", r.Host, r.TLS.ServerName, dialed)
			}
			if r.TLS.NegotiatedProtocol != "http/1.1" || r.TLS.Version < tls.VersionTLS12 || r.TLS.DidResume {
				t.Errorf("%+v", r.TLS)
			}
			for name, want := range map[string][]string{
				"X-Secret": {"s"}, "User-Agent": {"tester/1"}, "Sec-Websocket-Extensions": nil, "Sec-Websocket-Protocol": nil, "Origin": nil,
			} {
				if got := r.Header[name]; !reflect.DeepEqual(got, want) {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
		}
		if o.TLS.NextProtos[0] != "h2" || o.TLS.ClientSessionCache != cache || len(o.Header) != 1 {
			t.Error("Dial changed its Options")
		}
	})
}

func TestURL(t *testing.T) {
	o := phoenix.Options{NetDial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialed")
		return nil, errors.New("no")
	}}
	for _, u := range []string{"", "hub.test", "https://hub.test/", "wss://", "wss:///socket", "wss://user:hush@hub.test/", "wss://hub.test:x/"} {
		if _, err := phoenix.Dial(t.Context(), u, o); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", u, err)
		}
	}
}

// TestRefusals plays refusals recorded from a real NervesHub.
func TestRefusals(t *testing.T) {
	const reason = "Nh-Connection-Error-Reason"
	for file, want := range map[string]struct {
		status int
		reason string
		date   string
	}{
		"20-auth-none":                  {401, "no certificate pair or shared secrets connection settings were provided", "Mon, 23 Nov 2026 20:56:32 GMT"},
		"20-auth-go-default-certselect": {401, "no certificate pair or shared secrets connection settings were provided", "Mon, 23 Nov 2026 20:56:34 GMT"},
		"20-auth-badsig":                {401, "", "Mon, 23 Nov 2026 20:56:32 GMT"},
		"20-auth-novsn":                 {403, "", "Mon, 23 Nov 2026 20:56:38 GMT"},
		"20-auth-time-missing":          {503, "the platform could not be reached to authenticate this device", "Mon, 23 Nov 2026 21:44:11 GMT"},
	} {
		t.Run(file, func(t *testing.T) {
			recorded, err := os.ReadFile(filepath.Join("testdata/refusals", file+".jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			var response string
			for line := range bytes.Lines(recorded) {
				var r struct{ Kind, Text, Body string }
				if err := json.Unmarshal(line, &r); err != nil {
					t.Fatal(err)
				}
				if r.Kind == "http-response" {
					response = r.Text
				}
				response += r.Body
			}
			synctest.Test(t, func(t *testing.T) {
				_, err := phoenix.Dial(t.Context(), hubURL, options(answer(t, func(*http.Request) string { return response })))
				e, ok := err.(*phoenix.DialError)
				if !ok || e.Status != want.status || e.Header.Get(reason) != want.reason || !errors.Is(err, websocket.ErrBadHandshake) {
					t.Fatalf("%v, %+v", err, e)
				}
				if date, ok := e.Date(); !ok || date.Format(http.TimeFormat) != want.date {
					t.Errorf("date %v, %v", date, ok)
				}
				if got, want := err.Error(), fmt.Sprintf("phoenix: dial: %d %s: ", want.status, http.StatusText(want.status)); !strings.HasPrefix(got, want) {
					t.Errorf("%q does not begin with %q", got, want)
				}
			})
		})
	}
	if _, ok := (&phoenix.DialError{}).Date(); ok {
		t.Error("a date out of nothing")
	}
}

// TestNoWebsocket has servers that answer 101, but not as they should. That
// is no refusal.
func TestNoWebsocket(t *testing.T) {
	for name, tt := range map[string]struct{ extra, accept string }{
		"wrong key":         {"", "bm9uc2Vuc2U="},
		"unasked extension": {"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n", ""},
		"half an extension": {"Sec-WebSocket-Extensions: permessage-deflate\r\n", ""},
		"another extension": {"Sec-WebSocket-Extensions: x-nonsense\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, err := phoenix.Dial(t.Context(), hubURL, options(answer(t, func(r *http.Request) string {
					accept := tt.accept
					if accept == "" {
						accept = acceptKey(r)
					}
					return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + "\r\n" + tt.extra + "\r\n"
				})))
				if _, ok := errors.AsType[*phoenix.DialError](err); ok || err == nil || !strings.HasPrefix(err.Error(), "phoenix: dial: ") {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// TestDialInTime has servers that never come to the point.
func TestDialInTime(t *testing.T) {
	mute := func(c net.Conn) { readAll(c) }
	dribble := func(c net.Conn) {
		s := tls.Server(c, serverTLS())
		fmt.Fprint(s, "HTTP/1.1 101 Switching Protocols\r\nX: ")
		for {
			if _, err := s.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}
	handshaken := func(c net.Conn) {
		s := tls.Server(c, serverTLS())
		s.Handshake()
		readAll(s)
	}
	canceled := func(after time.Duration) func() (context.Context, context.CancelFunc) {
		return func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(after, cancel)
			return ctx, cancel
		}
	}
	deadline := func(after time.Duration) func() (context.Context, context.CancelFunc) {
		return func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.Background(), after)
		}
	}
	for name, tt := range map[string]struct {
		server  func(net.Conn)
		ctx     func() (context.Context, context.CancelFunc)
		timeout time.Duration
		want    error
		after   time.Duration
	}{
		"no TLS":                   {mute, deadline(time.Hour), 0, context.DeadlineExceeded, 15 * time.Second},
		"no TLS, canceled":         {mute, canceled(3 * time.Second), 0, context.Canceled, 3 * time.Second},
		"no answer":                {handshaken, deadline(time.Hour), 0, context.DeadlineExceeded, 15 * time.Second},
		"no answer, shorter":       {handshaken, deadline(time.Hour), 4 * time.Second, context.DeadlineExceeded, 4 * time.Second},
		"no answer, canceled":      {handshaken, canceled(3 * time.Second), 0, context.Canceled, 3 * time.Second},
		"no answer, ctx deadline":  {handshaken, deadline(2 * time.Second), 0, context.DeadlineExceeded, 2 * time.Second},
		"a byte a second":          {dribble, deadline(time.Hour), 0, context.DeadlineExceeded, 15 * time.Second},
		"a byte a second, stopped": {dribble, canceled(3500 * time.Millisecond), 0, context.Canceled, 3500 * time.Millisecond},
		"canceled before":          {mute, canceled(-1), 0, context.Canceled, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := options(serveRaw(t, tt.server))
				o.HandshakeTimeout = tt.timeout
				ctx, cancel := tt.ctx()
				defer cancel()
				synctest.Wait()
				start := time.Now()
				_, err := phoenix.Dial(ctx, hubURL, o)
				if !errors.Is(err, tt.want) || time.Since(start) != tt.after {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				if errors.Is(err, phoenix.ErrShed) || errors.Is(err, phoenix.ErrTLSRefused) {
					t.Errorf("%v is taken for the server's doing", err)
				}
			})
		})
	}
}

func TestEndlessHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := "X-More: " + strings.Repeat("x", 1000) + "\r\n"
		_, err := phoenix.Dial(t.Context(), hubURL, options(answer(t, func(*http.Request) string {
			return "HTTP/1.1 101 Switching Protocols\r\n" + strings.Repeat(line, 1000)
		})))
		if err == nil || !strings.Contains(err.Error(), "more than 262144 bytes") {
			t.Errorf("got %v", err)
		}
	})
}
