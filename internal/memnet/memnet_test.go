package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// pair returns the two ends of a connection, closed at the end of the test.
func pair(t *testing.T, l *Listener) (client, server net.Conn) {
	t.Helper()
	client, err := l.Dial(t.Context(), "tcp", "anything:443")
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen()
		client, server := pair(t, l)
		go func() {
			io.Copy(server, server)
			server.Close()
		}()
		io.WriteString(client, "hel")
		io.WriteString(client, "lo")
		b := make([]byte, 5)
		if _, err := io.ReadFull(client, b); err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
		if n, err := client.Read(nil); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		client.Close()
		synctest.Wait()
		wantErr(t, func() error { _, err := client.Read(b); return err }, net.ErrClosed, 0)
		wantErr(t, func() error { _, err := client.Write(b); return err }, net.ErrClosed, 0)
		if len(l.all()) != 0 {
			t.Error("a closed connection is still known")
		}
	})
}

func TestCloseAfterData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, Listen())
		io.WriteString(client, "last words")
		client.Close()
		wantErr(t, func() error { _, err := server.Write([]byte("x")); return err }, syscall.EPIPE, 0)
		if b, err := io.ReadAll(server); string(b) != "last words" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := pair(t, Listen())
		b := make([]byte, 1)
		read := func() error { _, err := client.Read(b); return err }
		client.SetReadDeadline(time.Now().Add(3 * time.Second))
		wantErr(t, read, os.ErrDeadlineExceeded, 3*time.Second)
		wantErr(t, read, os.ErrDeadlineExceeded, 0)
		if e, ok := errors.AsType[net.Error](read()); !ok || !e.Timeout() {
			t.Error("no timeout in the sense of net.Error")
		}

		// A deadline may move while somebody waits for it.
		client.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Second, func() { client.SetDeadline(time.Now().Add(time.Second)) })
		wantErr(t, read, os.ErrDeadlineExceeded, 2*time.Second)

		// The peer reads nothing: the buffer fills, then Write waits.
		client.SetWriteDeadline(time.Now().Add(5 * time.Second))
		n, err := client.Write(make([]byte, bufferSize-1))
		if err != nil {
			t.Fatal(err)
		}
		wantErr(t, func() (err error) { n, err = client.Write(make([]byte, 3)); return }, os.ErrDeadlineExceeded, 5*time.Second)
		if n != 1 {
			t.Errorf("%d bytes more fit in, want 1", n)
		}
	})
}

func TestWriteWaitsForReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, Listen())
		sent := strings.Repeat("0123456789", bufferSize/4)
		go func() {
			io.WriteString(client, sent)
			client.Close()
		}()
		if got, err := io.ReadAll(server); string(got) != sent || err != nil {
			t.Fatalf("%d of %d bytes, %v", len(got), len(sent), err)
		}
	})
}

func TestBlackhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen()
		client, server := pair(t, l)
		io.WriteString(server, "under way")
		l.Blackhole()
		if _, err := client.Write([]byte("hello?")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		client.SetReadDeadline(time.Now().Add(time.Hour))
		wantErr(t, func() error { _, err := client.Read(b); return err }, os.ErrDeadlineExceeded, time.Hour)
		client.Close()
		time.AfterFunc(time.Hour, l.Drop)
		wantErr(t, func() error { _, err := server.Read(b); return err }, syscall.ECONNRESET, time.Hour)

		client, server = pair(t, l) // a new one is not affected
		io.WriteString(server, "x")
		if _, err := client.Read(b); err != nil || b[0] != 'x' {
			t.Fatal(err)
		}
	})
}

func TestDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen()
		client, server := pair(t, l)
		io.WriteString(server, "lost")
		time.AfterFunc(time.Second, l.Drop)
		b := make([]byte, 1)
		wantErr(t, func() error { _, err := server.Read(b); return err }, syscall.ECONNRESET, time.Second)
		wantErr(t, func() error { _, err := client.Read(b); return err }, syscall.ECONNRESET, 0)
		wantErr(t, func() error { _, err := client.Write(b); return err }, syscall.ECONNRESET, 0)
	})
}

func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen()
		seen := map[string]bool{l.Addr().String(): true}
		for range 10 {
			client, server := pair(t, l)
			if client.LocalAddr().String() != server.RemoteAddr().String() || client.RemoteAddr().String() != l.Addr().String() {
				t.Errorf("%v to %v, but %v to %v", client.LocalAddr(), client.RemoteAddr(), server.RemoteAddr(), server.LocalAddr())
			}
			seen[client.LocalAddr().String()] = true
		}
		if len(seen) != 11 {
			t.Errorf("%d different addresses, want 11", len(seen))
		}
		for range backlog {
			if _, err := l.Dial(t.Context(), "", ""); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		dial := func() error { _, err := l.Dial(ctx, "", ""); return err }
		wantErr(t, dial, context.DeadlineExceeded, time.Second)
		wantErr(t, dial, context.DeadlineExceeded, 0)

		waiting := l.all()
		l.Close()
		l.Close()
		wantErr(t, func() error { _, err := l.Accept(); return err }, net.ErrClosed, 0)
		wantErr(t, func() error { _, err := l.Dial(t.Context(), "", ""); return err }, syscall.ECONNREFUSED, 0)
		reset := 0
		for _, k := range waiting {
			k.client.SetReadDeadline(time.Now())
			if _, err := k.client.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNRESET) {
				reset++
			}
		}
		if reset != backlog {
			t.Errorf("%d of %d waiting connections were reset", reset, backlog)
		}
	})
}

// wantErr checks what do returns, and how long it takes.
func wantErr(t *testing.T, do func() error, want error, after time.Duration) {
	t.Helper()
	start := time.Now()
	if err := do(); !errors.Is(err, want) || time.Since(start) != after {
		t.Fatalf("got %v after %v, want %v after %v", err, time.Since(start), want, after)
	}
}
