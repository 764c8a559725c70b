package bridge

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A hello is what a device says about itself after every connect.
type hello struct {
	V                                                      int
	Version, UUID, SHA256, Product, Platform, Architecture string
	Author, Description, VCS, Misc                         string
	ESP                                                    *espIDF
	Validated                                              *bool
	Reverted                                               bool
	Packet                                                 int // largest MQTT packet it takes, bytes; 0: not said
	Interface                                              string
}

// helloJSON is the JSON form: the contract's keys, and NervesHub's own, which
// firmware written for its other clients already has.
type helloJSON struct {
	V            *int   `json:"v"`
	Version      string `json:"version"`
	UUID         string `json:"uuid"`
	SHA256       string `json:"sha256"`
	Product      string `json:"product"`
	Platform     string `json:"platform"`
	Architecture string `json:"architecture"`
	Validated    *bool  `json:"validated"`
	Reverted     bool   `json:"reverted"`
	Packet       int    `json:"packet"`
	Interface    string `json:"interface"`

	FwUUID      string `json:"nerves_fw_uuid"`
	FwVersion   string `json:"nerves_fw_version"`
	FwProduct   string `json:"nerves_fw_product"`
	FwPlatform  string `json:"nerves_fw_platform"`
	FwArch      string `json:"nerves_fw_architecture"`
	Author      string `json:"nerves_fw_author"`
	Description string `json:"nerves_fw_description"`
	VCS         string `json:"nerves_fw_vcs_identifier"`
	Misc        string `json:"nerves_fw_misc"`
	ESPProject  string `json:"esp_idf_project_name"`
	ESPVersion  string `json:"esp_idf_version"`
	ESPELF      string `json:"esp_idf_app_elf_sha256"`
	ESPIDF      string `json:"esp_idf_ver"`
	ESPChip     chipID `json:"esp_idf_chip_id"`
	Meta        struct {
		Validated *bool `json:"firmware_validated"`
		Reverted  bool  `json:"firmware_auto_revert_detected"`
	} `json:"meta"`
}

// A chipID is an integer, or one in a string. A float would crash the join.
type chipID struct {
	n     int
	given bool
}

func (c *chipID) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 16)
	if err != nil {
		return fmt.Errorf("esp_idf_chip_id must be a whole number from 0 to 65535, not %.20s", b)
	}
	c.n, c.given = int(n), true
	return nil
}

var (
	uuidForm   = regexp.MustCompile(`^[0-9a-z-]{1,64}$`)
	sha256Form = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// parseHello reads both forms: a bare version, or a JSON object.
func parseHello(p []byte) (hello, *refusal) {
	text := strings.TrimSpace(string(p))
	if !strings.HasPrefix(text, "{") {
		if text == "" {
			return hello{}, &refusal{codeBadPayload, "hello is empty; send a version, or a JSON object"}
		}
		return hello{V: 1, Version: text}.checked()
	}
	var j helloJSON
	if err := json.Unmarshal(p, &j); err != nil {
		return hello{}, &refusal{codeBadPayload, jsonFault(err)}
	}
	h := hello{
		V: 1, SHA256: strings.ToLower(j.SHA256), Packet: j.Packet, Interface: j.Interface,
		UUID:         strings.ToLower(first(j.UUID, j.FwUUID)),
		Version:      first(j.Version, j.FwVersion),
		Product:      first(j.Product, j.FwProduct),
		Platform:     first(j.Platform, j.FwPlatform),
		Architecture: first(j.Architecture, j.FwArch),
		Author:       j.Author, Description: j.Description, VCS: j.VCS, Misc: j.Misc,
		Validated: j.Validated, Reverted: j.Reverted || j.Meta.Reverted,
	}
	if j.V != nil {
		h.V = *j.V
	}
	if h.Validated == nil {
		h.Validated = j.Meta.Validated
	}
	if j.ESPELF != "" || j.ESPProject != "" {
		if !j.ESPChip.given || j.ESPProject == "" {
			return hello{}, &refusal{codeIncomplete, "esp_idf_project_name or esp_idf_chip_id is missing"}
		}
		h.ESP = &espIDF{Project: j.ESPProject, Version: j.ESPVersion, ELF: j.ESPELF, IDF: j.ESPIDF, Chip: j.ESPChip.n}
	}
	return h.checked()
}

// checked refuses what NervesHub could not store or would crash on.
func (h hello) checked() (hello, *refusal) {
	switch {
	case h.V != 1:
		return hello{}, &refusal{codeUnsupported, fmt.Sprintf("v is %d; this gateway speaks version 1", h.V)}
	case h.Version != "" && !semver.MatchString(h.Version):
		return hello{}, &refusal{codeBadVersion, fmt.Sprintf("%q is not a semantic version such as 1.4.0", clean(h.Version))}
	case h.UUID != "" && !uuidForm.MatchString(h.UUID):
		return hello{}, &refusal{codeBadPayload, "uuid must be letters, digits and dashes"}
	case h.SHA256 != "" && !sha256Form.MatchString(h.SHA256):
		return hello{}, &refusal{codeBadPayload, "sha256 must be 64 hex digits"}
	case h.Packet < 0:
		return hello{}, &refusal{codeBadPayload, "packet must not be negative"}
	}
	texts := []string{h.Version, h.Product, h.Platform, h.Architecture, h.Author, h.Description, h.VCS, h.Misc, h.Interface}
	if e := h.ESP; e != nil {
		texts = append(texts, e.Project, e.Version, e.ELF, e.IDF)
	}
	for _, s := range texts {
		if !plain(s) {
			return hello{}, &refusal{codeBadPayload, fmt.Sprintf("%.40q has control characters or more than %d bytes", s, maxText)}
		}
	}
	return h, nil
}

// An image is firmware this device was offered, or said it runs.
type image struct{ UUID, Version, Product, Platform, Architecture, SHA256 string }

// find says which of the known images h names: by uuid, else by hash, else by a
// version other than that of before, the newest first. Where a hello names an
// image twice and differently the first decides, and conflict says so. A hash
// decides only where both sides have one: NervesHub may leave it out.
func (h hello) find(known []image, before string) (found image, conflict *refusal) {
	for _, i := range known {
		sameHash := strings.EqualFold(h.SHA256, i.SHA256)
		bothHash := h.SHA256 != "" && i.SHA256 != ""
		switch {
		case h.UUID != "":
			if h.UUID != i.UUID {
				continue
			}
			if bothHash && !sameHash {
				return i, &refusal{codeConflict, "uuid and sha256 name different images; uuid decides"}
			}
		case bothHash:
			if !sameHash {
				continue
			}
		case h.Version == "" || h.Version != i.Version || h.Version == before:
			continue
		}
		if h.Version != "" && h.Version != i.Version {
			return i, &refusal{codeConflict, fmt.Sprintf("the image with this uuid or sha256 has version %s, not %s", i.Version, h.Version)}
		}
		return i, nil
	}
	return image{}, nil
}

// resolve says what the device runs. What h leaves out is filled from the image
// it names, else from its last full hello, else from its class. The refusal is
// of code conflict, which is told but does not stop anything, or says what is
// missing.
func (h hello) resolve(known []image, last metadata, class Class) (metadata, *refusal) {
	m := metadata{UUID: h.UUID, Version: h.Version, Product: h.Product, Platform: h.Platform, Architecture: h.Architecture,
		Author: h.Author, Description: h.Description, VCS: h.VCS, Misc: h.Misc, Validated: h.Validated, Reverted: h.Reverted}
	if h.ESP != nil {
		m.ESP = h.ESP
		if r := h.ESP.fields(&m); r != nil {
			return m, r
		}
	}
	named, conflict := h.find(known, last.Version)
	switch {
	case named.UUID != "":
		m.UUID, m.Version = named.UUID, named.Version
		m.fill(named.Product, named.Platform, named.Architecture)
	case m.UUID == "" && m.Version == last.Version:
		m.UUID = last.UUID
	case m.Version == "" && m.UUID == last.UUID:
		m.Version = last.Version
	}
	if m.UUID == last.UUID {
		m.inherit(last)
	}
	m.fill(last.Product, last.Platform, last.Architecture)
	m.fill(class.Product, class.Platform, class.Architecture)
	if missing := m.missing(); missing != nil {
		return m, &refusal{codeIncomplete, "missing: " + strings.Join(missing, ", ")}
	}
	return m, conflict
}

// inherit takes over what the last hello said of the same firmware and this one
// leaves out.
func (m *metadata) inherit(last metadata) {
	m.Author, m.Description = first(m.Author, last.Author), first(m.Description, last.Description)
	m.VCS, m.Misc = first(m.VCS, last.VCS), first(m.Misc, last.Misc)
	if m.ESP == nil {
		m.ESP = last.ESP
	}
	if m.Validated == nil {
		m.Validated = last.Validated
	}
}

func (m *metadata) fill(product, platform, architecture string) {
	m.Product = first(m.Product, product)
	m.Platform = first(m.Platform, platform)
	m.Architecture = first(m.Architecture, architecture)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
