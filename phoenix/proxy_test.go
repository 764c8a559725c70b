package phoenix_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"ganglion/phoenix"
)

// The environment's proxy is looked up once per process, so each case of
// TestProxy is one: this test binary, told to dial.
func TestMain(m *testing.M) {
	if u := os.Getenv("PHOENIX_TEST_DIAL"); u != "" {
		c, err := phoenix.Dial(context.Background(), u, phoenix.Options{TLS: clientTLS()})
		if err != nil {
			fmt.Println(err)
			os.Exit(0)
		}
		c.Close()
		fmt.Println("connected")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestProxy(t *testing.T) {
	hub := serve(t, nil, talk(echo))
	for name, tt := range map[string]struct {
		scheme string         // of the proxy
		proxy  func(net.Conn) // after CONNECT was read
		want   string
	}{
		"connects": {"http", func(c net.Conn) {
			up, err := hub.Dial(context.Background(), "", "")
			if err != nil {
				return
			}
			defer up.Close()
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			var back sync.WaitGroup
			back.Go(func() { io.Copy(c, up); c.Close() })
			io.Copy(up, c)
			up.Close()
			back.Wait()
		}, "connected"},
		"refuses":          {"http", say("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), "phoenix: dial: Proxy Authentication Required"},
		"has no words":     {"http", say("HTTP/1.1 407\r\n\r\n"), "phoenix: dial: the proxy's answer makes no sense"},
		"hangs up":         {"http", say(""), "phoenix: dial: unexpected EOF"},
		"wants TLS itself": {"https", say(""), "https:// proxies are not supported"},
		"is unheard of":    {"gopher", say(""), "unknown scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var proxy sync.WaitGroup
			defer proxy.Wait()
			defer l.Close()
			proxy.Go(func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err == nil && r.Method == http.MethodConnect && r.Host == "hub.test:80" {
					tt.proxy(c)
				}
			})
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "PHOENIX_TEST_DIAL=ws://hub.test/socket/websocket",
				"GORACE=atexit_sleep_ms=0", "NO_PROXY=", "no_proxy=", "http_proxy=", "HTTP_PROXY="+tt.scheme+"://"+l.Addr().String())
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("got %q, %v, want %q", out, err, tt.want)
			}
		})
	}
}

func say(s string) func(net.Conn) { return func(c net.Conn) { io.WriteString(c, s) } }
