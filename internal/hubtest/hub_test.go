package hubtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"ganglion/internal/hubtest/auth"
)

// bubble runs a test in a synctest bubble with a hub in it; a goroutine left
// behind fails it.
func bubble(t *testing.T, c Config, f func(t *testing.T, w *world)) {
	t.Helper()
	keys() // made outside, with real time
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, c)
		defer w.end()
		f(t, w)
	})
}

const joinedReply = `["1","1","device","phx_reply",{"response":{},"status":"ok"}]`

// joinedClient dials and joins without extensions or keys.
func (w *world) joinedClient(id string) *client {
	w.t.Helper()
	c := w.dial(id)
	c.send(joinFrame(1, uuid110, "1.1.0", ""))
	c.want(joinedReply)
	c.event("extensions:get")
	return c
}

func TestUpdate(t *testing.T) {
	var log []string
	c := Config{ScheduleEvery: 20 * time.Millisecond, Log: func(e Entry) { log = append(log, e.Device+": "+e.Text) }}
	bubble(t, c, func(t *testing.T, w *world) {
		w.addLab()
		w.SetRelease(uuid110)
		c := w.dial("a")
		c.send(joinFrame(1, uuid100, "1.0.0", ""))
		c.want(joinedReply)
		c.event("update")
		time.Sleep(500 * time.Millisecond)
		c.send(`["1","2","device","status_update",{"status":"received"}]`)
		c.send(`["1","3","device","fwup_progress",{"value":40,"stage":"updating"}]`)
		w.wait("a", func(s DeviceState) bool { return s.Inflight != nil && s.Inflight.Progress == 40 })
		c.send(joinFrame(4, uuid110, "1.1.0", ""))
		w.wait("a", func(s DeviceState) bool { return s.Joins == 2 })
		s, _ := w.Device("a")
		if s.Successes != 1 || s.Inflight != nil || len(s.Attempts) != 0 || s.Metadata.Version != "1.1.0" || s.GroupUpdates != 1 {
			t.Errorf("after the update: %+v", s)
		}
		c.hangUp()
	})
	for _, want := range []string{"a: update to 1.1.0 pushed", "a: runs 1.1.0 (validated)", "a: disconnected"} {
		if !slices.Contains(log, want) {
			t.Errorf("log %q lacks %q", log, want)
		}
	}
}

// wait fails the test if cond does not come to hold within a minute.
func (w *world) wait(id string, cond func(DeviceState) bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.Wait(ctx, id, cond); err != nil {
		s, _ := w.Device(id)
		w.t.Fatalf("%v: %+v", err, s)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err := w.Wait(ctx, "nobody", func(DeviceState) bool { return true })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestFrames(t *testing.T) {
	for _, test := range []struct{ name, send, want string }{
		{"numbers come back as numbers", `[null,7,"phoenix","heartbeat",{}]`, `[null,7,"phoenix","phx_reply",{"response":{},"status":"ok"}]`},
		{"further elements are ignored", `[null,"7","phoenix","heartbeat",{},1]`, `[null,"7","phoenix","phx_reply",{"response":{},"status":"ok"}]`},
		{"a classic topic", `["7","7","devices","phx_join",{}]`, `[null,"7","devices","phx_reply",{"response":{"reason":"unmatched topic"},"status":"error"}]`},
		{"a second join in another form", `[7,7,"device","phx_join",{}]`, `[7,7,"device","phx_reply",{"response":{},"status":"ok"}]`},
		{"leaving what is not joined", `["7","7","console","phx_leave",{}]`, `["7","7","console","phx_reply",{"response":{},"status":"ok"}]`},
		{"a payload that is no object", `["7","7","device","phx_join",[]]`, `["7","7","device","phx_reply",{"response":{"reason":"join crashed"},"status":"error"}]`},
		{"not JSON", `nonsense`, `close 1011`},
		{"four elements", `["1","2","device","x"]`, `close 1011`},
		{"a topic that is no string", `["1","2",3,"x",{}]`, `close 1011`},
		{"not UTF-8", "\xff\xfe", `close 1007`},
		{"a stage nobody knows", `["1","2","device","fwup_progress",{"value":1,"stage":"x"}]`, `["1","1","device","phx_error",{"reason":"channel_crash"}]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, w *world) {
				c := w.joinedClient("a")
				c.send(test.send)
				c.want(test.want)
			})
		})
	}
}

func TestBinaryFrames(t *testing.T) {
	push := "\x00\x01\x01\x06\x02" + "1" + "2" + "device" + "up" + "hi"
	for _, test := range []struct{ name, send, want string }{
		{"a push", push, `["1","1","device","phx_error",{"reason":"channel_crash"}]`},
		{"rubbish", "\x07", `close 1011`},
		{"too short", "\x00\xff\x01\x06\x02", `close 1011`},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, w *world) {
				c := w.joinedClient("a")
				c.ws.WriteMessage(websocket.BinaryMessage, []byte(test.send))
				c.want(test.want)
			})
		})
	}
}

func TestRefusals(t *testing.T) {
	for _, how := range Refusals {
		t.Run(string(how), func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, w *world) {
				w.AddDevice("a")
				w.Refuse("a", how, 1)
				switch how {
				case RefuseJoin, RefuseEntry:
					c := w.dial("a")
					c.send(joinFrame(1, uuid110, "1.1.0", ""))
					if got := c.next(time.Second); !strings.Contains(got, string(how)) {
						t.Errorf("got %s", got)
					}
				default:
					_, res, err := w.tryDial("a")
					got := ""
					switch {
					case res != nil:
						got = res.Status[:3]
					case errors.Is(err, io.EOF):
						got = "shed"
					case err != nil && strings.Contains(err.Error(), "handshake failure"):
						got = "alert"
					}
					if got != string(how) {
						t.Errorf("got %v, %v", res, err)
					}
				}
				w.joinedClient("a").hangUp() // the next one is let in
				if s, _ := w.Device("a"); s.Refused != 1 {
					t.Errorf("%d refused, want 1", s.Refused)
				}
			})
		})
	}
}

func TestShedOfAnyDevice(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		w.Refuse("", RefuseShed, 1)
		// Whether the client notices when it writes or when it reads is chance.
		if _, _, err := w.tryDial("a"); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("got %v", err)
		}
		w.dial("a").hangUp()
	})
}

func TestDrain(t *testing.T) {
	bubble(t, Config{DrainBatch: 2}, func(t *testing.T, w *world) {
		start := time.Now()
		a, b, c := w.joinedClient("a"), w.joinedClient("b"), w.joinedClient("c")
		w.Drain()
		a.want("close 1012")
		b.want("close 1012")
		again := w.joinedClient("a") // accepted by the dying node
		if d := time.Since(start); d > time.Second {
			t.Errorf("the first batch took %v", d)
		}
		c.want("close 1012")
		if d := time.Since(start).Round(time.Second); d != 4*time.Second {
			t.Errorf("the second batch went after %v", d)
		}
		again.want("close 1000")
		w.joinedClient("a").hangUp() // the new node
	})
}

func TestVanish(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		c := w.joinedClient("a")
		w.Vanish("a")
		c.send(`[null,"2","phoenix","heartbeat",{}]`)
		c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
		if got := c.next(10 * time.Minute); got != "" || len(c.pongs) > 0 {
			t.Errorf("a vanished server said %q", got)
		}
		if s, _ := w.Device("a"); !s.Online {
			t.Error("the server noticed")
		}
		w.joinedClient("a").hangUp()
		c.want("cut")
	})
}

func TestDelay(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		c := w.joinedClient("a")
		w.Delay("a", 20*time.Second)
		start := time.Now()
		c.send(`[null,"2","phoenix","heartbeat",{}]`)
		c.want(`[null,"2","phoenix","phx_reply",{"response":{},"status":"ok"}]`)
		if d := time.Since(start); d != 20*time.Second {
			t.Errorf("answered after %v", d)
		}
	})
}

// A device whose socket is fed by pings alone looks offline after 21 minutes,
// and heartbeats do not bring it back.
func TestStale(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		c := w.joinedClient("a")
		for range 23 {
			time.Sleep(time.Minute)
			c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
		}
		c.send(`[null,"2","phoenix","heartbeat",{}]`)
		c.event("phx_reply")
		if s, _ := w.Device("a"); s.Online || !s.Stale || !s.Joined {
			t.Errorf("not stale: %+v", s)
		}
		c.hangUp()
		w.joinedClient("a").hangUp()
		if s, _ := w.Device("a"); s.Stale {
			t.Error("still stale after a reconnect")
		}
	})
}

// A socket that never joined is taken for connected after 15 minutes, and its
// update is lost.
func TestUpdateWithoutChannel(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		w.addLab()
		w.SetRelease(uuid110)
		c := w.dial("a")
		w.edit("a", func(d *device) { d.meta, d.grouped = on100, true })
		for range 40 {
			time.Sleep(time.Minute)
			c.send(`[null,"2","phoenix","heartbeat",{}]`)
			c.event("phx_reply")
		}
		if s, _ := w.Device("a"); !s.Online || s.Joined || s.Inflight == nil {
			t.Errorf("%+v", s)
		}
		c.hangUp()
	})
}

func TestSlots(t *testing.T) {
	c := Config{ScheduleEvery: 20 * time.Millisecond, Group: Group{Concurrent: 1}}
	bubble(t, c, func(t *testing.T, w *world) {
		w.addLab()
		w.SetRelease(uuid200)
		a, b := w.joinedClient("a"), w.joinedClient("b")
		time.Sleep(time.Second)
		if s, _ := w.Device("b"); s.Inflight != nil {
			t.Error("two updates at a time")
		}
		a.send(joinFrame(2, uuid200, "2.0.0", ""))
		b.event("update")
		b.hangUp()
		a.hangUp()
	})
}

func TestHealthIsAskedForEveryHour(t *testing.T) {
	bubble(t, Config{Extensions: []string{"health"}, Idle: 2 * time.Hour}, func(t *testing.T, w *world) {
		c := w.joinedClient("a")
		c.send(`["2","2","extensions","phx_join",{"health":"0.0.1"}]`)
		c.send(`["2","3","extensions","health:attached",{}]`)
		c.event("health:check")
		start := time.Now()
		time.Sleep(59 * time.Minute)
		c.event("health:check")
		if d := time.Since(start); d != time.Hour {
			t.Errorf("asked again after %v", d)
		}
		c.hangUp()
	})
}

func TestCloseEndsEverything(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, w *world) {
		a, b := w.joinedClient("a"), w.joinedClient("b")
		w.Vanish("b")
		w.end()
		a.want("cut")
		b.want("cut")
		if err := w.Serve(w.dials); err != nil {
			t.Errorf("Serve after Close: %v", err)
		}
	})
}

// The same hub on real sockets.
func TestTCP(t *testing.T) {
	k := keys()
	registry := auth.New()
	if err := registry.AddCA(k.ca.Certificate, true); err != nil {
		t.Fatal(err)
	}
	h := New(Config{Auth: registry, Certificate: k.server})
	devices, web := listen(t), listen(t)
	var wg sync.WaitGroup
	wg.Go(func() { h.Serve(devices) })
	wg.Go(func() { h.ServeWeb(web) })
	defer wg.Wait()
	defer h.Close()

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(k.root)
	leaf, err := k.ca.Issue("tcp")
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{
		RootCAs: roots, ServerName: "localhost",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf.Cert, nil },
	}
	d := websocket.Dialer{TLSClientConfig: cfg}
	ws, _, err := d.Dial("wss://"+devices.Addr().String()+"/device-socket/websocket?vsn=2.0.0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.WriteMessage(websocket.TextMessage, []byte(joinFrame(1, uuid110, "1.1.0", "")))
	if _, b, err := ws.ReadMessage(); err != nil || string(b) != joinedReply {
		t.Errorf("got %s, %v", b, err)
	}
	h.Reconnect("tcp")
	for err == nil {
		_, _, err = ws.ReadMessage()
	}
	if closed(err) != "close 1001" {
		t.Errorf("ended with %v", err)
	}
	checkPaths(t, cfg, "https://"+devices.Addr().String(), "http://"+web.Addr().String())
}

func checkPaths(t *testing.T, cfg *tls.Config, devices, web string) {
	t.Helper()
	client := http.Client{
		Transport:     &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for url, want := range map[string]int{
		devices + "/status/alive":            200,
		devices + "/wrong":                   301,
		devices + "/socket/websocket":        400,
		web + "/status/alive":                200,
		web + "/socket/websocket":            404,
		web + "/firmware/1/nothing.fw":       404,
		web + "/api/socket/websocket":        400,
		web + "/uploads/archives/nothing.fw": 404,
	} {
		res, err := client.Get(url)
		if err != nil {
			t.Error(err)
			continue
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", url, res.StatusCode, want)
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
