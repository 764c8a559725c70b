package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Firmware is what a device runs, in NervesHub's five words and the digest of
// the image if it is known.
type Firmware struct {
	Version      string
	UUID         string
	Product      string
	Platform     string
	Architecture string
	SHA256       string // lower-case hex; empty if the image was not fetched
}

func (f Firmware) String() string {
	if f.UUID == "" {
		return f.Version
	}
	return fmt.Sprintf("%s (%.8s)", f.Version, f.UUID)
}

// An offer is firmware to install, out of either form of down/update.
type offer struct {
	firmware Firmware // empty fields were not said
	url      string
	size     int64  // bytes; 0: not said
	sha256   string // lower-case hex of the file behind url; empty: not said
	prove    bool   // versions repeat: only uuid or digest tell it from what runs before it
}

// errNoUpdate is parseOffer's answer to update_available:false, which
// NervesHub sends with every other field null.
var errNoUpdate = errors.New("no update available")

// parseOffer reads down/update, which has two forms: NervesHub's own update
// payload passed through, with firmware_url and firmware_meta, or the
// gateway's flat manifest, with url. The caller has taken care of the empty
// payload, which means that there is nothing to install.
func parseOffer(payload []byte) (offer, error) {
	var m struct {
		Available *bool    `json:"update_available"`
		Link      string   `json:"firmware_url"`
		Meta      Firmware `json:"firmware_meta"`
		Size      int64    `json:"size"`
		Checksum  string   `json:"checksum"`

		URL     string `json:"url"`
		UUID    string `json:"uuid"`
		Version string `json:"version"`
		SHA256  string `json:"sha256"`
		Prove   bool   `json:"prove"`
	}
	if err := json.Unmarshal(payload, &m); err != nil {
		return offer{}, fmt.Errorf("not an update: %w", err)
	}
	if m.Available != nil && !*m.Available {
		return offer{}, errNoUpdate
	}
	o := offer{firmware: m.Meta, url: m.Link, size: m.Size, sha256: m.Checksum, prove: true}
	if m.Link == "" {
		o = offer{firmware: Firmware{Version: m.Version, UUID: m.UUID}, url: m.URL, size: m.Size, sha256: m.SHA256, prove: m.Prove}
	}
	o.sha256 = strings.ToLower(o.sha256)
	o.firmware.UUID = strings.ToLower(o.firmware.UUID)
	o.firmware.SHA256 = o.sha256
	return o, o.check()
}

func (o offer) check() error {
	if o.firmware.UUID == "" && o.firmware.Version == "" && o.sha256 == "" {
		return errors.New("names no firmware: no uuid, version or sha256")
	}
	// The URL holds a signature: it appears in no error.
	u, err := url.Parse(o.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("has no http or https URL")
	}
	if o.size < 0 || o.size > maxImage {
		return fmt.Errorf("size %d does not fit the flash of %d bytes", o.size, maxImage)
	}
	return nil
}

// key tells two images apart.
func (o offer) key() string {
	return o.firmware.UUID + " " + o.sha256 + " " + o.firmware.Version
}

// runs reports whether f is the offered firmware. A uuid or digest decides; a
// version only when the offer does not say that versions repeat, or when there
// is nothing else to compare.
func (o offer) runs(f Firmware) bool {
	sameUUID := f.UUID != "" && strings.EqualFold(f.UUID, o.firmware.UUID)
	sameSum := f.SHA256 != "" && f.SHA256 == o.sha256
	sameVersion := f.Version != "" && f.Version == o.firmware.Version
	comparable := f.UUID != "" && o.firmware.UUID != "" || f.SHA256 != "" && o.sha256 != ""
	return sameUUID || sameSum || sameVersion && !(o.prove && comparable)
}

// installed is what runs after f was replaced by the offer, whose image had
// the given digest: what the offer does not say stays as it was.
func (o offer) installed(f Firmware, sha256 string) Firmware {
	pick := func(offered, before string) string {
		if offered != "" {
			return offered
		}
		return before
	}
	n := o.firmware
	return Firmware{
		Version:      pick(n.Version, f.Version),
		UUID:         n.UUID, // never the old one
		Product:      pick(n.Product, f.Product),
		Platform:     pick(n.Platform, f.Platform),
		Architecture: pick(n.Architecture, f.Architecture),
		SHA256:       sha256,
	}
}
