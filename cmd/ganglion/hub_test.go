package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A runningHub is `ganglion hub` on free ports, in this process.
type runningHub struct {
	t                 *testing.T
	devices, web, api string // host:port
	stop              context.CancelFunc
	ended             chan error
}

var readyLine = regexp.MustCompile(`^ready devices=wss://(\S+)/device-socket/websocket web=http://(\S+) api=http://(\S+) dir=`)

func startHub(t *testing.T, args ...string) *runningHub {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	cmd := hubCommand()
	cmd.SetOut(in)
	cmd.SetArgs(append([]string{"--listen", "127.0.0.1:0", "--web", "127.0.0.1:0", "--api", "127.0.0.1:0"}, args...))
	h := &runningHub{t: t, stop: cancel, ended: make(chan error, 1)}
	go func() {
		err := cmd.ExecuteContext(ctx)
		in.Close()
		h.ended <- err
	}()
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("no ready line: %v, %v", err, <-h.ended)
		}
		if m := readyLine.FindStringSubmatch(line); m != nil {
			h.devices, h.web, h.api = m[1], m[2], m[3]
			break
		}
	}
	go io.Copy(io.Discard, lines) // until in is closed
	t.Cleanup(cancel)
	return h
}

// end stops the hub, which must be no error.
func (h *runningHub) end() {
	h.t.Helper()
	h.stop()
	select {
	case err := <-h.ended:
		if err != nil {
			h.t.Errorf("hub ended: %v", err)
		}
	case <-time.After(30 * time.Second):
		h.t.Fatal("hub did not end")
	}
}

// upgrade asks for a websocket with a device's certificate from the directory
// and returns the status of the answer.
func (h *runningHub) upgrade(dir, id string) int {
	h.t.Helper()
	leaf, err := tls.LoadX509KeyPair(filepath.Join(dir, "devices", id+".pem"), filepath.Join(dir, "devices", id+"-key.pem"))
	if err != nil {
		h.t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(dir, "hub-root.pem"))
	if err != nil {
		h.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	c, err := tls.Dial("tcp", h.devices, &tls.Config{
		RootCAs:              pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf, nil },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(c, "GET /device-socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", h.devices)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode
}

func (h *runningHub) get(url string) (status int, body string) {
	h.t.Helper()
	res, err := http.Get(url)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestHubCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hub")
	h := startHub(t, "--dir", dir, "--issue", "dev-1", "--release", "1.1.0", "--size", "1000", "--uuid", "3c55399b-96d9-5a6a-2a3c-4dc82b781299")
	if status := h.upgrade(dir, "dev-1"); status != http.StatusSwitchingProtocols {
		t.Errorf("dev-1 is answered %d", status)
	}
	if status, body := h.get("http://" + h.api + "/devices/dev-1?wait=connections:1"); status != 200 || !strings.Contains(body, `"id": "dev-1"`) {
		t.Errorf("API: %d %s", status, body)
	}
	if status, body := h.get("http://" + h.web + "/firmware/1/3c55399b-96d9-5a6a-2a3c-4dc82b781299.fw"); status != 200 || len(body) != 1000 {
		t.Errorf("firmware: %d, %d bytes", status, len(body))
	}
	key := filepath.Join(dir, "devices", "dev-1-key.pem")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	h.end()

	// The next run is the same hub: what it issued still works.
	h = startHub(t, "--dir", dir, "--issue", "dev-1", "--issue", "dev-2", "--host", "hub.test", "--quiet")
	for _, id := range []string{"dev-1", "dev-2"} {
		if status := h.upgrade(dir, id); status != http.StatusSwitchingProtocols {
			t.Errorf("%s is answered %d after a restart", id, status)
		}
	}
	h.end()
	if after, err := os.ReadFile(key); err != nil || string(after) != string(before) {
		t.Errorf("the restart changed a device's key: %v", err)
	}
}

func TestHubMistakes(t *testing.T) {
	dir := t.TempDir()
	taken := startHub(t, "--dir", dir)
	defer taken.end()
	other := t.TempDir()
	if err := os.MkdirAll(filepath.Join(other, "devices"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"device-ca.pem": "hub.pem", "device-ca-key.pem": "hub-key.pem"} {
		b, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(other, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--issue", "dev-1"}, "hub: issue: needs --dir"},
		{[]string{"--dir", t.TempDir(), "--issue", "../dev-1"}, `hub: issue: "../dev-1" is no file name`},
		{[]string{"--secret", "nhp_x"}, "hub: secret: the value must be nhp_…=SECRET"},
		{[]string{"--secret", "nhd_x=y"}, "hub: secret: the value must be"},
		{[]string{"--release", "1.0.0", "--image", "nowhere.bin"}, "hub: image: open nowhere.bin"},
		{[]string{"--listen", taken.devices}, "hub: listen: listen tcp"},
		{[]string{"--dir", other}, "not an authority with an ECDSA key; delete it for a new one"},
	} {
		cmd := hubCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetOut(io.Discard)
		cmd.SetArgs(append([]string{"--listen", "127.0.0.1:0", "--web", "127.0.0.1:0", "--api", "127.0.0.1:0"}, c.args...))
		err := cmd.ExecuteContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: got %v, want %q", c.args, err, c.says)
		}
	}
}
