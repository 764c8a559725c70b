package hubtest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Metadata is the firmware a device said it runs, as NervesHub stores it.
type Metadata struct {
	UUID         string `json:"uuid"`
	Product      string `json:"product"`
	Version      string `json:"version"`
	Platform     string `json:"platform"`
	Architecture string `json:"architecture"`
	FwupVersion  string `json:"fwup_version,omitempty"`
}

func (m Metadata) complete() bool {
	return m.UUID != "" && m.Product != "" && m.Version != "" && m.Platform != "" && m.Architecture != ""
}

// The two ways in which NervesHub refuses a join of the device channel.
var (
	errJoinCrashed   = errors.New("join crashed")
	errCouldNotEnter = errors.New("could not connect")
)

// joinParams is a phx_join payload of the device channel, read as
// NervesHubWeb.DeviceChannel and its metadata parsers read it.
type joinParams struct {
	meta        Metadata // what the keys say; fields that are missing or no strings are empty
	api         semver   // device_api_version, 1.0.0 when missing or unparsable
	apiText     string
	downloading bool // currently_downloading_uuid is a non-empty string; the value is not compared
	fwupKeys    bool // fwup_public_keys: "on_connect"
	archiveKeys bool // archive_public_keys: "on_connect"
	validation  string
	reverted    bool
}

// parseJoin reads a join payload. Its errors are errJoinCrashed and
// errCouldNotEnter, wrapped with the reason.
func parseJoin(payload json.RawMessage) (joinParams, error) {
	p := joinParams{api: semver{major: 1}, apiText: "1.0.0", validation: "unknown"}
	params, ok := decode(payload).(map[string]any)
	if !ok {
		return p, fmt.Errorf("%w: payload is not an object", errJoinCrashed)
	}
	if v, ok := params["device_api_version"]; ok {
		text, ok := v.(string)
		if !ok {
			return p, fmt.Errorf("%w: device_api_version is not a string", errJoinCrashed)
		}
		if api, ok := parseSemver(text); ok {
			p.api, p.apiText = api, text
		}
	}
	p.downloading = str(params, "currently_downloading_uuid") != ""
	p.fwupKeys = str(params, "fwup_public_keys") == "on_connect"
	p.archiveKeys = str(params, "archive_public_keys") == "on_connect"
	if err := p.readMeta(params["meta"]); err != nil {
		return p, err
	}
	var err error
	if isESP(params) {
		p.meta, err = espMetadata(params)
	} else {
		p.meta = fwupMetadata(params)
	}
	return p, err
}

func (p *joinParams) readMeta(v any) error {
	if v == nil {
		return nil
	}
	meta, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%w: meta is not an object", errJoinCrashed)
	}
	switch v := meta["firmware_validated"].(type) {
	case nil:
	case bool:
		p.validation = "not_validated"
		if v {
			p.validation = "validated"
		}
	default:
		return fmt.Errorf("%w: meta.firmware_validated is not a boolean", errJoinCrashed)
	}
	switch v := meta["firmware_auto_revert_detected"].(type) {
	case nil:
	case bool:
		p.reverted = v
	default:
		return fmt.Errorf("%w: meta.firmware_auto_revert_detected is not a boolean", errCouldNotEnter)
	}
	return nil
}

func isESP(params map[string]any) bool {
	switch str(params, "update_tool") {
	case "esp-idf":
		return true
	case "fwup":
		return false
	}
	return params["esp_idf_app_elf_sha256"] != nil || params["esp_idf_project_name"] != nil
}

func fwupMetadata(params map[string]any) Metadata {
	return Metadata{
		UUID:         str(params, "nerves_fw_uuid"),
		Product:      str(params, "nerves_fw_product"),
		Version:      str(params, "nerves_fw_version"),
		Platform:     str(params, "nerves_fw_platform"),
		Architecture: str(params, "nerves_fw_architecture"),
		FwupVersion:  str(params, "fwup_version"),
	}
}

// espChips maps the chip id of an ESP-IDF image header to platform and architecture.
var espChips = map[int][2]string{
	0x00: {"esp32", "xtensa"}, 0x02: {"esp32s2", "xtensa"}, 0x05: {"esp32c3", "riscv"},
	0x09: {"esp32s3", "xtensa"}, 0x0C: {"esp32c2", "riscv"}, 0x0D: {"esp32c6", "riscv"},
	0x10: {"esp32h2", "riscv"}, 0x12: {"esp32p4", "riscv"}, 0x17: {"esp32c5", "riscv"},
}

func espMetadata(params map[string]any) (Metadata, error) {
	m := Metadata{Product: str(params, "esp_idf_project_name"), Version: espVersion(str(params, "esp_idf_version"))}
	if sum, err := hex.DecodeString(str(params, "esp_idf_app_elf_sha256")); err == nil && len(sum) >= 16 {
		m.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
	}
	var text string
	switch id := params["esp_idf_chip_id"].(type) {
	case json.Number:
		if !isInteger(id) {
			return m, fmt.Errorf("%w: esp_idf_chip_id is not an integer", errJoinCrashed)
		}
		text = id.String()
	case string:
		text = id
	}
	if id, err := strconv.Atoi(text); err == nil {
		chip, ok := espChips[id]
		if !ok {
			chip = [2]string{"esp32-" + strconv.Itoa(id), "unknown"}
		}
		m.Platform, m.Architecture = chip[0], chip[1]
	}
	return m, nil
}

// espVersion makes a semantic version of a PROJECT_VER, or "" if it cannot.
func espVersion(v string) string {
	v = strings.TrimLeft(strings.TrimLeft(strings.TrimSpace(v), "v"), "V")
	if _, ok := parseSemver(v); ok {
		return v
	}
	parts := strings.Split(v, ".")
	for _, part := range parts {
		if _, err := strconv.ParseUint(part, 10, 64); err != nil {
			return ""
		}
	}
	switch len(parts) {
	case 1:
		return v + ".0.0"
	case 2:
		return v + ".0"
	}
	return strings.Join(parts[:3], ".") + "+" + strings.Join(parts[3:], ".")
}

// decode parses JSON keeping numbers as written, because NervesHub tells 42
// from 42.0. It returns nil for anything unparsable.
func decode(raw json.RawMessage) any {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	if _, err := d.Token(); err != io.EOF {
		return nil
	}
	return v
}

func str(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}

// isInteger says whether Elixir's JSON decoder makes an integer of n: a
// fraction or an exponent makes a float, whatever the value.
func isInteger(n json.Number) bool { return !strings.ContainsAny(n.String(), ".eE") }
