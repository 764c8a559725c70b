package hubtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"ganglion/internal/hubtest/auth"
	"ganglion/internal/memnet"
)

// A world is a hub on in-memory listeners with a CA that provisions devices.
type world struct {
	*Hub
	t     *testing.T
	dials *memnet.Listener
	web   *memnet.Listener
	ca    *auth.CA
	roots *x509.CertPool
	wg    sync.WaitGroup
}

// keys are shared by all worlds, because making them costs more than the tests.
var keys = sync.OnceValue(func() (k struct {
	ca     *auth.CA
	server tls.Certificate
	root   []byte
}) {
	var err, err2 error
	k.ca, err = auth.NewCA("devices")
	k.server, k.root, err2 = auth.NewServerCertificate("localhost")
	if err := errors.Join(err, err2); err != nil {
		panic(err)
	}
	return k
})

// newWorld starts a hub; Close is called when the test ends.
func newWorld(t *testing.T, c Config) *world {
	t.Helper()
	k := keys()
	w := &world{t: t, dials: memnet.Listen(), web: memnet.Listen(), ca: k.ca, roots: x509.NewCertPool()}
	w.roots.AppendCertsFromPEM(k.root)
	c.Auth, c.Certificate = auth.New(), k.server
	if err := c.Auth.AddCA(w.ca.Certificate, true); err != nil {
		t.Fatal(err)
	}
	w.Hub = New(c)
	w.wg.Go(func() {
		if err := w.Serve(w.dials); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	w.wg.Go(func() {
		if err := w.ServeWeb(w.web); err != nil {
			t.Errorf("ServeWeb: %v", err)
		}
	})
	return w
}

func (w *world) end() {
	w.Close()
	w.wg.Wait()
}

// A client is a bare websocket on a device's identity.
type client struct {
	t      *testing.T
	ws     *websocket.Conn
	frames chan string // text frames, and at last the close
	done   chan struct{}
	pongs  chan string
}

// dial connects as a device.
func (w *world) dial(id string) *client {
	w.t.Helper()
	c, res, err := w.tryDial(id)
	if err != nil {
		w.t.Fatalf("dial %s: %v (%v)", id, err, res)
	}
	return c
}

func (w *world) tryDial(id string) (*client, *http.Response, error) {
	leaf, err := w.leaf(id)
	if err != nil {
		return nil, nil, err
	}
	d := websocket.Dialer{
		NetDialContext: func(ctx context.Context, n, a string) (net.Conn, error) { return w.dials.Dial(ctx, n, a) },
		TLSClientConfig: &tls.Config{
			RootCAs: w.roots, ServerName: "localhost", NextProtos: []string{"http/1.1"},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf, nil },
		},
	}
	return w.connect(&d, "wss://localhost/socket/websocket?vsn=2.0.0")
}

// dialUser connects as an operator.
func (w *world) dialUser() *client {
	w.t.Helper()
	d := websocket.Dialer{
		NetDialContext: func(ctx context.Context, n, a string) (net.Conn, error) { return w.web.Dial(ctx, n, a) },
	}
	c, _, err := w.connect(&d, "ws://localhost/api/socket/websocket?vsn=2.0.0&token=nhu_x")
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

var leaves sync.Map // of tls.Certificate, by device: one key per device, as NervesHub wants it

func (w *world) leaf(id string) (tls.Certificate, error) {
	if v, ok := leaves.Load(id); ok {
		return v.(tls.Certificate), nil
	}
	leaf, err := w.ca.IssueWith(id, auth.LeafOptions{})
	if err != nil {
		return tls.Certificate{}, err
	}
	leaves.Store(id, leaf.Cert)
	return leaf.Cert, nil
}

func (w *world) connect(d *websocket.Dialer, url string) (*client, *http.Response, error) {
	ws, res, err := d.Dial(url, nil)
	if err != nil {
		return nil, res, err
	}
	return w.read(ws), res, nil
}

// read makes a client of a websocket.
func (w *world) read(ws *websocket.Conn) *client {
	c := &client{t: w.t, ws: ws, frames: make(chan string, 1024), done: make(chan struct{}), pongs: make(chan string, 64)}
	ws.SetPongHandler(func(data string) error { c.pongs <- data; return nil })
	w.wg.Go(c.read)
	return c
}

func (c *client) read() {
	defer close(c.done)
	for {
		_, b, err := c.ws.ReadMessage()
		if err != nil {
			c.frames <- closed(err)
			c.ws.Close()
			return
		}
		c.frames <- string(b)
	}
}

// closed names the end of a connection by its close code.
func closed(err error) string {
	if e, ok := errors.AsType[*websocket.CloseError](err); ok && e.Code != websocket.CloseAbnormalClosure {
		return fmt.Sprintf("close %d", e.Code)
	}
	return "cut"
}

func (c *client) send(text string) {
	if err := c.ws.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		c.t.Logf("send %s: %v", text, err)
	}
}

// hangUp closes the connection politely and waits for its end.
func (c *client) hangUp() {
	c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
	<-c.done
}

// cut drops the TCP connection.
func (c *client) cut() {
	c.ws.NetConn().Close()
	<-c.done
}

// next returns the next frame or close, or "" if none comes within d.
func (c *client) next(d time.Duration) string {
	select {
	case f := <-c.frames:
		return f
	case <-time.After(d):
		return ""
	}
}

// want fails unless the next frame is the given one.
func (c *client) want(frame string) {
	c.t.Helper()
	if got := c.next(time.Minute); got != frame {
		c.t.Fatalf("got  %s\nwant %s", got, frame)
	}
}

// event returns the payload of the next frame of the given event, passing over others.
func (c *client) event(name string) json.RawMessage {
	c.t.Helper()
	for {
		text := c.next(10 * time.Minute)
		f, err := parseFrame([]byte(text))
		if err != nil {
			c.t.Fatalf("waiting for %s: got %q", name, text)
		}
		if f.Event == name {
			return f.Payload
		}
	}
}

const (
	uuid100 = "c6d03fbb-910e-502a-cfb7-dd1b044b8e56"
	uuid110 = "ebf47077-e378-5982-8811-93d12d3c77c3"
	uuid200 = "fa43251b-e5b9-5c39-430f-34d8407611be"
)

// joinFrame is a join with all five fields; more is appended to the payload.
func joinFrame(ref int, uuid, version, more string) string {
	return fmt.Sprintf(`["%d","%d","device","phx_join",{"nerves_fw_uuid":%q,"nerves_fw_product":"gw","nerves_fw_version":%q,`+
		`"nerves_fw_platform":"gwtest","nerves_fw_architecture":"arm","device_api_version":"2.2.0","meta":{"firmware_validated":true}%s}]`,
		ref, ref, uuid, version, more)
}

// addLab uploads the three firmwares of the recordings.
func (w *world) addLab() {
	for _, f := range []Firmware{
		{UUID: uuid100, Version: "1.0.0", Image: []byte("one")},
		{UUID: uuid110, Version: "1.1.0", Size: 66385, Checksum: "B4AAE95385AFDEA8367452B45296C65635C5099834F188CDAA7060582B2627BD"},
		{UUID: uuid200, Version: "2.0.0", Size: 66385, Checksum: "DF96CAED9E065C4938EC5AC207EEECE1CB606380242C9E2AB4FFB91769E155C2"},
	} {
		f.Product, f.Platform, f.Architecture = "gw", "gwtest", "arm"
		f.Author, f.Description, f.Misc, f.VCSIdentifier = "lab", "lab firmware "+f.Version, "misc", "deadbeef"+f.Version
		if f.Checksum != "" {
			f.Partials = []string{f.Checksum}
		}
		w.AddFirmware(f)
	}
}
