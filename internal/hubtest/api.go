package hubtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// API is how people and tests of other languages drive the Hub; docs/hub.md of
// the project has every request. Bodies are JSON both ways, errors are
// {"error":"…"}. It has no authentication of its own.
func (h *Hub) API() http.Handler {
	mux := http.NewServeMux()
	for pattern, answer := range map[string]answer{
		"GET /healthz":          func(*http.Request) (any, error) { return map[string]string{"status": "ok"}, nil },
		"GET /devices":          h.apiDevices,
		"GET /devices/{id}":     h.apiDevice,
		"POST /devices/{id}":    h.apiCreate,
		"DELETE /devices/{id}":  h.known(func(id string, _ *http.Request) error { h.DeleteDevice(id); return nil }),
		"POST /firmware":        h.apiFirmware,
		"POST /release":         h.apiRelease,
		"POST /drain":           func(*http.Request) (any, error) { h.Drain(); return accepted{}, nil },
		"POST /refuse":          func(r *http.Request) (any, error) { return nil, h.apiRefuse("", r) },
		"POST /extensions/{id}": h.apiExtension,

		"POST /devices/{id}/update":      h.known(h.apiUpdate),
		"POST /devices/{id}/updates":     h.known(h.apiUpdates),
		"DELETE /devices/{id}/penalty":   h.known(func(id string, _ *http.Request) error { return h.ClearPenalty(id) }),
		"POST /devices/{id}/reboot":      h.known(func(id string, _ *http.Request) error { return h.Reboot(id) }),
		"POST /devices/{id}/identify":    h.known(func(id string, _ *http.Request) error { return h.Identify(id) }),
		"POST /devices/{id}/reconnect":   h.connected(h.Reconnect),
		"POST /devices/{id}/drop":        h.connected(h.Drop),
		"POST /devices/{id}/vanish":      h.connected(h.Vanish),
		"POST /devices/{id}/crash":       h.connected(h.CrashChannel),
		"POST /devices/{id}/refuse":      h.known(h.apiRefuse),
		"POST /devices/{id}/delay":       h.known(h.apiDelay),
		"POST /devices/{id}/push":        h.known(h.apiPush),
		"POST /devices/{id}/script":      h.apiScript,
		"POST /devices/{id}/certificate": h.known(h.apiCertificate),
	} {
		mux.Handle(pattern, answer)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, fmt.Errorf("no endpoint %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// An answer handles a request: its value is the body of a 200, nil a 204.
type answer func(*http.Request) (any, error)

// What is answered with another status than 200 or 204.
type (
	accepted struct{}           // 202, no body
	created  struct{ body any } // 201
)

// A failure is an error with a status of its own.
type failure struct {
	status int
	error
}

func failf(status int, format string, args ...any) error {
	return failure{status, fmt.Errorf(format, args...)}
}

// bodyLimit is the most a request may bring, bytes: a firmware of 48 MiB in base64.
const bodyLimit = 64 << 20

func (a answer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, bodyLimit)
	body, err := a(r)
	if err != nil {
		writeError(w, statusOf(err), err)
		return
	}
	switch v := body.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case accepted:
		w.WriteHeader(http.StatusAccepted)
	case created:
		writeJSON(w, http.StatusCreated, v.body)
	default:
		writeJSON(w, http.StatusOK, v)
	}
}

func statusOf(err error) int {
	var f failure
	switch {
	case errors.As(err, &f):
		return f.status
	case errors.Is(err, ErrUnknownDevice), errors.Is(err, ErrUnknownFirmware):
		return http.StatusNotFound
	case errors.Is(err, ErrInflight), errors.Is(err, ErrScripts):
		return http.StatusConflict
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

func writeError(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, map[string]string{"error": strings.TrimPrefix(err.Error(), "hubtest: ")})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		status, b = http.StatusInternalServerError, *bytes.NewBufferString(`{"error":"encoding"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

// read decodes a request's body over v, which may hold defaults. No body is an
// empty object; a key that does not exist is a mistake.
func read(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	var big *http.MaxBytesError
	switch err := dec.Decode(v); {
	case err == io.EOF, err == nil && !dec.More():
		return nil
	case err == nil:
		return failf(http.StatusBadRequest, "body: more than one JSON value")
	case errors.As(err, &big):
		return failf(http.StatusRequestEntityTooLarge, "body: more than %d bytes", big.Limit)
	default:
		return failf(http.StatusBadRequest, "body: %w", err)
	}
}

// known is an answer about a device that must exist.
func (h *Hub) known(do func(id string, r *http.Request) error) answer {
	return func(r *http.Request) (any, error) {
		id := r.PathValue("id")
		if _, ok := h.Device(id); !ok {
			return nil, fmt.Errorf("%w: %s", ErrUnknownDevice, id)
		}
		return nil, do(id, r)
	}
}

// connected is an answer about a device that must have a socket.
func (h *Hub) connected(do func(id string) error) answer {
	return h.known(func(id string, _ *http.Request) error {
		if d, _ := h.Device(id); !d.Socket {
			return failf(http.StatusConflict, "%s is not connected", id)
		}
		return do(id)
	})
}

// apiDevices leaves the recorded frames out; a device's own page has them.
func (h *Hub) apiDevices(*http.Request) (any, error) {
	all := h.Devices()
	for i := range all {
		all[i].Frames = nil
	}
	return append([]DeviceState{}, all...), nil
}

// waitDefault is how long GET /devices/ID?wait=… waits unless told.
const waitDefault = 30 * time.Second

func (h *Hub) apiDevice(r *http.Request) (any, error) {
	id, q := r.PathValue("id"), r.URL.Query()
	wait, timeout := q["wait"], waitDefault
	if text := q.Get("timeout"); text != "" {
		var err error
		if timeout, err = time.ParseDuration(text); err != nil {
			return nil, failf(http.StatusBadRequest, "timeout: %w", err)
		}
	}
	for _, w := range wait {
		if !strings.Contains(w, ":") {
			return nil, failf(http.StatusBadRequest, "wait: want field:value, got %q", w)
		}
	}
	if len(wait) > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		err := h.Wait(ctx, id, func(s DeviceState) bool {
			return !slices.ContainsFunc(wait, func(w string) bool { return !meets(s, w) })
		})
		if err != nil {
			return nil, fmt.Errorf("%s: not %s within %v: %w", id, strings.Join(wait, " and "), timeout, err)
		}
	}
	s, ok := h.Device(id)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrUnknownDevice, id)
	}
	return s, nil
}

// meets reports whether a condition like inflight.status:received is true of
// the state: the field as the API names it, dots inside, and its JSON value, a
// string without quotes.
func meets(s DeviceState, condition string) bool {
	path, want, _ := strings.Cut(condition, ":")
	s.Frames = nil // nobody waits for one this way, and they are most of it
	v := decode(marshal(s))
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	if text, ok := v.(string); ok {
		return text == want
	}
	return string(marshal(v)) == want
}

func (h *Hub) apiCreate(r *http.Request) (any, error) {
	id := r.PathValue("id")
	h.AddDevice(id)
	s, _ := h.Device(id)
	return created{s}, nil
}
