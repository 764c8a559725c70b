package bridge

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

var (
	oldFirmware = metadata{UUID: "c6d03fbb-910e-502a-cfb7-dd1b044b8e56", Version: "1.0.0", Product: "gw", Platform: "gwtest", Architecture: "arm"}
	handedImage = image{UUID: "ebf47077-e378-5982-8811-93d12d3c77c3", Version: "1.1.0", Product: "gw", Platform: "gwtest", Architecture: "arm",
		SHA256: strings.Repeat("AB", 32)}
)

// older is what the device ran before its last full hello.
var older = image{UUID: "0b9f6a34-7f43-5a1e-9d0b-6a1f2f0e8a77", Version: "0.9.0", Product: "gw", Platform: "gwtest", Architecture: "arm", SHA256: strings.Repeat("cd", 32)}

// TestResolve: what a hello leaves out is filled from the image that was handed
// out, else from the last full hello, else from the class.
func TestResolve(t *testing.T) {
	full := `{"version":"2.0.0","uuid":"AAAAAAAA-0000-5000-8000-000000000000","product":"p","platform":"f","architecture":"a"}`
	class := Class{Product: "class-product", Platform: "class-platform", Architecture: "class-arch"}
	tests := []struct {
		name, in string
		handed   image
		last     metadata
		class    Class
		want     string // uuid version product platform architecture
		code     code
	}{
		{"all said", full, image{}, metadata{}, Class{}, "aaaaaaaa-0000-5000-8000-000000000000 2.0.0 p f a", ""},
		{"version of the image handed out", "1.1.0", handedImage, oldFirmware, Class{}, handedImage.UUID + " 1.1.0 gw gwtest arm", ""},
		{"version as before", "1.0.0", handedImage, oldFirmware, Class{}, oldFirmware.UUID + " 1.0.0 gw gwtest arm", ""},
		{"version of nothing known", "3.0.0", handedImage, oldFirmware, Class{}, "", codeIncomplete},
		{"version alone does not tell two images apart", "1.0.0", image{UUID: "x", Version: "1.0.0"}, oldFirmware, Class{}, oldFirmware.UUID + " 1.0.0 gw gwtest arm", ""},
		{"uuid of the image", `{"uuid":"` + handedImage.UUID + `"}`, handedImage, oldFirmware, Class{}, handedImage.UUID + " 1.1.0 gw gwtest arm", ""},
		{"hash of the image", `{"sha256":"` + strings.Repeat("ab", 32) + `"}`, handedImage, oldFirmware, Class{}, handedImage.UUID + " 1.1.0 gw gwtest arm", ""},
		{"uuid wins over version", `{"uuid":"` + handedImage.UUID + `","version":"9.9.9"}`, handedImage, oldFirmware, Class{}, handedImage.UUID + " 1.1.0 gw gwtest arm", codeConflict},
		{"uuid wins over hash", `{"uuid":"` + handedImage.UUID + `","sha256":"` + strings.Repeat("00", 32) + `"}`, handedImage, oldFirmware, Class{}, handedImage.UUID + " 1.1.0 gw gwtest arm", codeConflict},
		{"hash wins over version", `{"sha256":"` + strings.Repeat("ab", 32) + `","version":"9.9.9"}`, handedImage, oldFirmware, Class{}, handedImage.UUID + " 1.1.0 gw gwtest arm", codeConflict},
		{"version of an earlier image", "0.9.0", handedImage, oldFirmware, Class{}, older.UUID + " 0.9.0 gw gwtest arm", ""},
		{"hash of an earlier image", `{"sha256":"` + strings.Repeat("CD", 32) + `"}`, handedImage, oldFirmware, Class{}, older.UUID + " 0.9.0 gw gwtest arm", ""},
		{"a hash where the offer had none", `{"version":"1.1.0","sha256":"` + strings.Repeat("00", 32) + `"}`, image{UUID: "x-1", Version: "1.1.0"}, oldFirmware, Class{}, "x-1 1.1.0 gw gwtest arm", ""},
		{"a hash that no image has", `{"version":"1.1.0","sha256":"` + strings.Repeat("00", 32) + `"}`, handedImage, oldFirmware, Class{}, "", codeIncomplete},
		{"class fills", `{"version":"1.0.0","uuid":"u-1"}`, image{}, metadata{}, class, "u-1 1.0.0 class-product class-platform class-arch", ""},
		{"hello over class", `{"version":"1.0.0","uuid":"u-1","product":"mine"}`, image{}, metadata{}, class, "u-1 1.0.0 mine class-platform class-arch", ""},
		{"a version and no more", "1.0.0", image{}, metadata{}, class, "", codeIncomplete},
		{"NervesHub's own keys", `{"nerves_fw_uuid":"U-2","nerves_fw_version":"1.2.3","nerves_fw_product":"p","nerves_fw_platform":"f","nerves_fw_architecture":"a","meta":{"firmware_validated":true}}`,
			image{}, metadata{}, Class{}, "u-2 1.2.3 p f a", ""},
		{"ESP-IDF", `{"esp_idf_project_name":"soil","esp_idf_version":"v1.4","esp_idf_app_elf_sha256":"5A0C1F22334455667788` + strings.Repeat("99", 22) + `","esp_idf_chip_id":5}`,
			image{}, metadata{}, Class{}, "5a0c1f22-3344-5566-7788-999999999999 1.4.0 soil esp32c3 riscv", ""},
		{"ESP-IDF chip in a string", `{"esp_idf_project_name":"soil","esp_idf_version":"1.2.3.4","esp_idf_app_elf_sha256":"` + strings.Repeat("11", 32) + `","esp_idf_chip_id":"77"}`,
			image{}, metadata{}, Class{}, "11111111-1111-1111-1111-111111111111 1.2.3+4 soil esp32-77 unknown", ""},
		{"ESP-IDF version", `{"esp_idf_project_name":"soil","esp_idf_version":"next","esp_idf_app_elf_sha256":"` + strings.Repeat("11", 32) + `","esp_idf_chip_id":5}`,
			image{}, metadata{}, Class{}, "", codeBadVersion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, no := parseHello([]byte(tt.in))
			if no != nil {
				t.Fatal(no)
			}
			m, no := h.resolve([]image{tt.handed, older}, tt.last, tt.class)
			if no == nil && tt.code != "" || no != nil && no.code != tt.code {
				t.Fatalf("%v, want %q", no, tt.code)
			}
			if got := strings.Join([]string{m.UUID, m.Version, m.Product, m.Platform, m.Architecture}, " "); tt.want != "" && got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestBadHello(t *testing.T) {
	for _, tt := range []struct {
		in   string
		code code
	}{
		{"", codeBadPayload},
		{"1.4", codeBadVersion},
		{"v1.4.0", codeBadVersion},
		{"01.4.0", codeBadVersion},
		{"1.4.0\x00", codeBadVersion},
		{"{", codeBadPayload},
		{`{"version":1.4}`, codeBadPayload},
		{`{"version":"1.4.0","uuid":["a"]}`, codeBadPayload},
		{`{"version":"1.4.0","uuid":"a/b"}`, codeBadPayload},
		{`{"version":"1.4.0","sha256":"abc"}`, codeBadPayload},
		{`{"version":"1.4.0","product":"a\u0000b"}`, codeBadPayload},
		{`{"version":"1.4.0","product":"` + strings.Repeat("x", 256) + `"}`, codeBadPayload},
		{`{"version":"1.4.0","validated":"yes"}`, codeBadPayload},
		{`{"version":"1.4.0","meta":5}`, codeBadPayload},
		{`{"version":"1.4.0","packet":-1}`, codeBadPayload},
		{`{"version":"1.4.0","v":2}`, codeUnsupported},
		{`{"esp_idf_project_name":"x","esp_idf_chip_id":5.5}`, codeBadPayload},
		{`{"esp_idf_project_name":"x","esp_idf_chip_id":-1}`, codeBadPayload},
		{`{"esp_idf_project_name":"x"}`, codeIncomplete},
		{`{"esp_idf_app_elf_sha256":"5a0c1f223344556677889900aabbccdd","esp_idf_version":"1.0.0","esp_idf_chip_id":5,"product":"x"}`, codeIncomplete},
	} {
		if _, no := parseHello([]byte(tt.in)); no == nil || no.code != tt.code || no.reason == "" {
			t.Errorf("%.60q: %v, want %s", tt.in, no, tt.code)
		}
	}
}

// FuzzHello: a hello is refused by name, or makes a join NervesHub can store.
func FuzzHello(f *testing.F) {
	for _, s := range []string{"1.4.0", `{"v":1,"version":"1.4.0","uuid":"3c55399b-96d9-5a6a-2a3c-4dc82b781299","product":"soil-probe","platform":"stm32l4","architecture":"arm","validated":true}`,
		`{"esp_idf_project_name":"soil","esp_idf_version":"v1.4","esp_idf_app_elf_sha256":"5a0c1f223344556677889900aabbccdd","esp_idf_chip_id":"5"}`,
		`{"version":"1.4.0","meta":{"firmware_validated":null}}`, `{"UUID":"A"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, no := parseHello(b)
		if no != nil {
			if !slices.Contains(Codes(), string(no.code)) || no.reason == "" {
				t.Errorf("%q: %+v", b, no)
			}
			return
		}
		m, no := h.resolve([]image{handedImage}, oldFirmware, Class{})
		if no != nil && no.code != codeConflict {
			return
		}
		if missing := m.missing(); missing != nil {
			t.Errorf("%q: joined without %v", b, missing)
		}
		if !semver.MatchString(m.Version) || m.UUID != strings.ToLower(m.UUID) {
			t.Errorf("%q: version %q, uuid %q", b, m.Version, m.UUID)
		}
		var p map[string]any
		if err := json.Unmarshal(m.join("x", "wlan0"), &p); err != nil || p["device_api_version"] != apiVersion || p["fwup_version"] != nil {
			t.Errorf("%q: join %v %v", b, p, err)
		}
	})
}

func TestESPVersion(t *testing.T) {
	for in, want := range map[string]string{
		"1.4.0": "1.4.0", "v1.4.0": "1.4.0", "vvV1": "1.0.0", " 1.2 ": "1.2.0", "1.2.3.4": "1.2.3+4", "1.2.3-rc.1": "1.2.3-rc.1",
		"": "", "next": "", "1.2.x": "", "1.2.3.4.5": "", "01": "", "v1.2-dirty": "",
	} {
		got, ok := espVersion(in)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q %t, want %q", in, got, ok, want)
		}
	}
}
