package hubtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// The requests of the API that have a body.

// A choice names a firmware; empty, it is the one of the release.
type choice struct {
	UUID    string `json:"uuid"`
	Version string `json:"version"`
}

// choose finds the firmware a request means.
func (h *Hub) choose(r *http.Request) (string, error) {
	var c choice
	if err := read(r, &c); err != nil {
		return "", err
	}
	h.mu.Lock()
	defer h.unlock()
	switch {
	case c.UUID != "":
		return c.UUID, nil
	case c.Version == "" && h.group.release != "":
		return h.group.release, nil
	}
	var found []string
	for uuid, f := range h.firmware {
		if f.Version == c.Version {
			found = append(found, uuid)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%w: version %q", ErrUnknownFirmware, c.Version)
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	return "", failf(http.StatusConflict, "version %q: there are %d, name one by uuid: %s", c.Version, len(found), strings.Join(found, " "))
}

func (h *Hub) apiUpdate(id string, r *http.Request) error {
	uuid, err := h.choose(r)
	if err != nil {
		return err
	}
	return h.PushUpdate(id, uuid)
}

func (h *Hub) apiRelease(r *http.Request) (any, error) {
	uuid, err := h.choose(r)
	if err != nil {
		return nil, err
	}
	return nil, h.SetRelease(uuid)
}

func (h *Hub) apiUpdates(id string, r *http.Request) error {
	var b struct {
		Enabled *bool `json:"enabled"`
	}
	if err := read(r, &b); err != nil {
		return err
	}
	if b.Enabled == nil {
		return failf(http.StatusBadRequest, "enabled: missing; want true or false")
	}
	return h.SetUpdatesEnabled(id, *b.Enabled)
}

func (h *Hub) apiExtension(r *http.Request) (any, error) {
	b := struct {
		On bool `json:"on"`
	}{true}
	if err := read(r, &b); err != nil {
		return nil, err
	}
	h.SetExtension(r.PathValue("id"), b.On)
	return nil, nil
}

func (h *Hub) apiRefuse(id string, r *http.Request) error {
	b := struct {
		How   Refusal `json:"how"`
		Times int     `json:"times"`
	}{Refuse401, 1}
	if err := read(r, &b); err != nil {
		return err
	}
	if !slices.Contains(Refusals, b.How) {
		return failf(http.StatusBadRequest, "how: got %q, want one of %q", b.How, Refusals)
	}
	if b.Times < 0 {
		return failf(http.StatusBadRequest, "times: got %d, want 0 or more", b.Times)
	}
	h.Refuse(id, b.How, b.Times)
	return nil
}

func (h *Hub) apiDelay(id string, r *http.Request) error {
	var b struct {
		Delay string `json:"delay"`
	}
	if err := read(r, &b); err != nil {
		return err
	}
	by, err := time.ParseDuration(b.Delay)
	if err != nil || by < 0 {
		return failf(http.StatusBadRequest, `delay: got %q, want a duration like "500ms", "0s" to end it`, b.Delay)
	}
	h.Delay(id, by)
	return nil
}

func (h *Hub) apiPush(id string, r *http.Request) error {
	b := struct {
		Topic   string          `json:"topic"`
		Event   string          `json:"event"`
		Payload json.RawMessage `json:"payload"`
	}{Topic: "device", Payload: json.RawMessage("{}")}
	if err := read(r, &b); err != nil {
		return err
	}
	if b.Event == "" {
		return failf(http.StatusBadRequest, "event: missing")
	}
	return h.Push(id, b.Topic, b.Event, b.Payload)
}

func (h *Hub) apiScript(r *http.Request) (any, error) {
	var b struct {
		Text string `json:"text"`
	}
	if err := read(r, &b); err != nil {
		return nil, err
	}
	result, err := h.RunScript(r.Context(), r.PathValue("id"), b.Text)
	if err != nil {
		return nil, err
	}
	return map[string]string{"result": result}, nil
}

func (h *Hub) apiCertificate(id string, r *http.Request) error {
	var b struct {
		Cert string `json:"cert"` // PEM
	}
	if err := read(r, &b); err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(b.Cert))
	if block == nil {
		return failf(http.StatusBadRequest, "cert: not PEM")
	}
	if err := h.cfg.Auth.StoreCertificate(id, block.Bytes); err != nil {
		return failure{http.StatusUnprocessableEntity, err}
	}
	return nil
}

// firmwareLimit is the largest image made up on request, bytes.
const firmwareLimit = 64 << 20

func (h *Hub) apiFirmware(r *http.Request) (any, error) {
	var b struct {
		UUID         string `json:"uuid"`
		Product      string `json:"product"`
		Version      string `json:"version"`
		Platform     string `json:"platform"`
		Architecture string `json:"architecture"`
		Extension    string `json:"extension"`
		Image        []byte `json:"image"` // base64
		Size         int    `json:"size"`  // of a random image, bytes
	}
	if err := read(r, &b); err != nil {
		return nil, err
	}
	switch {
	case b.Version == "" || b.Product == "" || b.Platform == "" || b.Architecture == "":
		return nil, failf(http.StatusBadRequest, "product, version, platform and architecture must be given")
	case b.Image != nil && b.Size != 0:
		return nil, failf(http.StatusBadRequest, "image and size: give one of them")
	case b.Size < 0 || b.Size > firmwareLimit:
		return nil, failf(http.StatusBadRequest, "size: got %d, want 0 to %d", b.Size, firmwareLimit)
	}
	if b.Image == nil {
		b.Image = make([]byte, b.Size)
		rand.Read(b.Image) // never fails
	}
	f := Firmware{UUID: b.UUID, Product: b.Product, Version: b.Version, Platform: b.Platform, Architecture: b.Architecture,
		Extension: b.Extension, Image: b.Image}
	if f.UUID == "" {
		f.UUID = NewUUID(f)
	}
	h.AddFirmware(f)
	return created{map[string]any{"uuid": f.UUID, "version": f.Version, "size": len(f.Image), "checksum": checksum(f.Image)}}, nil
}

// NewUUID derives a uuid from what tells firmware apart, the image included.
func NewUUID(f Firmware) string {
	s := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %x", f.Product, f.Version, f.Platform, f.Architecture, sha256.Sum256(f.Image)))
	s[6], s[8] = s[6]&0x0f|0x80, s[8]&0x3f|0x80 // version 8, custom (RFC 9562 §5.8)
	return fmt.Sprintf("%x-%x-%x-%x-%x", s[:4], s[4:6], s[6:8], s[8:10], s[10:16])
}
