// Package web is what the gateway shows of itself over HTTP: /healthz, /readyz
// and /metrics. It reads snapshots and changes nothing; it knows no MQTT, no
// Phoenix and no configuration file.
package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ganglion/bridge"
)

// A Gateway is what the pages are about.
type Gateway interface {
	Devices() []bridge.Status
	Counters() bridge.Counters
	// Broker says how the MQTT side is doing: connected devices, messages it
	// lost by reason, and why it cannot serve, or nil.
	Broker() (devices int, lost map[string]uint64, err error)
}

// Config is what a Server needs.
type Config struct {
	Listener net.Listener
	Gateway  Gateway
	Version  string
	Log      *slog.Logger
}

// A Server answers on one listener.
type Server struct {
	cfg  Config
	http http.Server
}

// New returns a Server for c.
func New(c Config) *Server {
	s := &Server{cfg: c}
	s.http = http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
	}
	return s
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry(s.cfg.Gateway, s.cfg.Version), promhttp.HandlerOpts{}))
	return mux
}

// health says that the process answers. It does not depend on NervesHub or a
// broker: a restart would heal neither.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }

// ready says whether a device could be served now.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if _, _, err := s.cfg.Gateway.Broker(); err != nil {
		http.Error(w, "mqtt: "+strings.TrimPrefix(err.Error(), "mqtt: "), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// grace is how long requests under way may take when Run is to end: less than
// the second that those who wait for Run give it.
const grace = 800 * time.Millisecond

// Run serves until ctx ends and requests under way have, or [grace] is over.
func (s *Server) Run(ctx context.Context) error {
	down := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(down)
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		if s.http.Shutdown(ctx) != nil {
			s.http.Close()
		}
	})
	err := s.http.Serve(s.cfg.Listener)
	if !stop() { // Serve returns when Shutdown begins
		<-down
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("web: %w", err)
	}
	return nil
}
