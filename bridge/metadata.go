package bridge

import (
	"encoding/hex"
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A metadata is what a device runs, in the words of NervesHub's join.
type metadata struct {
	UUID, Version, Product, Platform, Architecture string
	Author, Description, VCS, Misc                 string // optional, stored by NervesHub
	ESP                                            *espIDF
	Validated                                      *bool // nil: the device did not say
	Reverted                                       bool
}

// An espIDF is how an ESP-IDF application describes itself; NervesHub derives
// the five fields from it (lib/nerves_hub/firmwares/update_tool/esp_idf.ex).
type espIDF struct {
	Project, Version, ELF, IDF string
	Chip                       int
}

// missing names the fields NervesHub needs and the device did not give. A join
// without them is booked as a successful update, so there is none.
func (m metadata) missing() []string {
	var names []string
	for _, f := range []struct{ name, value string }{
		{"uuid", m.UUID}, {"version", m.Version}, {"product", m.Product},
		{"platform", m.Platform}, {"architecture", m.Architecture},
	} {
		if f.value == "" {
			names = append(names, f.name)
		}
	}
	return names
}

// apiVersion is what the gateway speaks: 2.2.0 brings extensions:get and, with
// 2.1.0, scripts/run (NervesHubWeb.DeviceChannel).
const apiVersion = "2.2.0"

// join returns the join parameters. downloading is the uuid of the update that
// is in progress, or "". fwup_version is never among them: its presence makes
// NervesHub send deltas.
func (m metadata) join(downloading, networkInterface string) json.RawMessage {
	p := map[string]any{
		"device_api_version": apiVersion,
		"meta":               map[string]any{"firmware_validated": m.Validated, "firmware_auto_revert_detected": m.Reverted},
	}
	if m.ESP != nil {
		p["update_tool"] = "esp-idf"
		p["esp_idf_project_name"], p["esp_idf_version"] = m.ESP.Project, m.ESP.Version
		p["esp_idf_app_elf_sha256"], p["esp_idf_chip_id"] = m.ESP.ELF, m.ESP.Chip
		setIf(p, "esp_idf_ver", m.ESP.IDF)
	} else {
		p["update_tool"] = "fwup"
		p["nerves_fw_uuid"], p["nerves_fw_version"], p["nerves_fw_product"] = m.UUID, m.Version, m.Product
		p["nerves_fw_platform"], p["nerves_fw_architecture"] = m.Platform, m.Architecture
		setIf(p, "nerves_fw_author", m.Author)
		setIf(p, "nerves_fw_description", m.Description)
		setIf(p, "nerves_fw_vcs_identifier", m.VCS)
		setIf(p, "nerves_fw_misc", m.Misc)
	}
	setIf(p, "currently_downloading_uuid", downloading)
	setIf(p, "network_interface", networkInterface) // servers up to 2.4.0 read it here
	b, _ := json.Marshal(p)                         // strings, a number and two flags: cannot fail
	return b
}

func setIf(p map[string]any, key, value string) {
	if value != "" {
		p[key] = value
	}
}

// same reports whether a join with o would tell NervesHub nothing that a join
// with m has not.
func (m metadata) same(o metadata) bool {
	a, b := m.join("", ""), o.join("", "")
	return string(a) == string(b)
}

// semver is the grammar of Semantic Versioning 2.0.0. NervesHub compares
// versions with Elixir's Version, which takes nothing else: another form
// crashes the join and costs the device its deployment group.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?` +
	`(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

// espVersion normalises PROJECT_VER as NervesHub does: leading v and V go,
// 1 is 1.0.0, 1.2 is 1.2.0 and 1.2.3.4 is 1.2.3+4.
func espVersion(v string) (string, bool) {
	v = strings.TrimLeft(strings.TrimLeft(strings.TrimSpace(v), "v"), "V")
	if semver.MatchString(v) {
		return v, true
	}
	parts := strings.Split(v, ".")
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, 32); err != nil {
			return "", false
		}
	}
	switch len(parts) {
	case 1:
		v = parts[0] + ".0.0"
	case 2:
		v += ".0"
	case 4:
		v = strings.Join(parts[:3], ".") + "+" + parts[3]
	}
	return v, semver.MatchString(v)
}

// chips names platform and architecture by the image header's chip id.
var chips = map[int][2]string{
	0x0000: {"esp32", "xtensa"}, 0x0002: {"esp32s2", "xtensa"}, 0x0005: {"esp32c3", "riscv"}, 0x0009: {"esp32s3", "xtensa"},
	0x000C: {"esp32c2", "riscv"}, 0x000D: {"esp32c6", "riscv"}, 0x0010: {"esp32h2", "riscv"}, 0x0012: {"esp32p4", "riscv"},
	0x0017: {"esp32c5", "riscv"},
}

// fields fills the five fields from the ESP-IDF description. The uuid is the
// first 16 bytes of the ELF's SHA-256.
func (e espIDF) fields(m *metadata) *refusal {
	elf, err := hex.DecodeString(e.ELF)
	if err != nil || len(elf) < 16 {
		return &refusal{codeBadPayload, "esp_idf_app_elf_sha256 must be at least 32 hex digits"}
	}
	version, ok := espVersion(e.Version)
	if !ok {
		return &refusal{codeBadVersion, "esp_idf_version " + strconv.Quote(e.Version) + " cannot be read as a semantic version"}
	}
	u := hex.EncodeToString(elf[:16])
	m.UUID = u[:8] + "-" + u[8:12] + "-" + u[12:16] + "-" + u[16:20] + "-" + u[20:]
	m.Version, m.Product = version, e.Project
	chip, known := chips[e.Chip]
	if !known {
		chip = [2]string{"esp32-" + strconv.Itoa(e.Chip), "unknown"}
	}
	m.Platform, m.Architecture = chip[0], chip[1]
	return nil
}

// maxText is the longest text a device may send upstream, bytes: NervesHub keeps
// most of them in columns of 255 characters.
const maxText = 255

// plain reports whether s can be stored by NervesHub: PostgreSQL refuses NUL and
// invalid UTF-8, and control characters only garble the page.
func plain(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// clean makes s plain: what cannot be stored is replaced, the rest is cut at a
// character.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	for len(s) > maxText {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return strings.TrimSpace(s)
}
