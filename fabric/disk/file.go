package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/vmfabric/vmfabric/fabric"
)

// format is the version of a guest's file and of the directory's layout. It grows
// with every change that this code could not read.
const format = 1

const (
	suffix    = ".json" // the suffix of a guest's file
	newSuffix = ".new"  // after that: a change that is not yet safe on the disk
	tempStart = ".tmp-" // the prefix of a file that is not finished
)

// maxFileName leaves room for both suffixes in the 255 bytes of a file name.
const maxFileName = 255 - len(suffix) - len(newSuffix)

// A file is JSON: its format, a checksum, and the value under a key that says what it
// is. The checksum is of the value without insignificant white space, so that it may
// be indented.

// fileName returns the name of a guest's file without suffix: the guest's own name,
// with % and two hex digits for each byte that is not a plain character. A name too
// long for that ends in ~ and a hash, so that different guests still have different
// files.
func fileName(vm string) string {
	var b strings.Builder
	for i := range len(vm) {
		if c := vm[i]; plain(c) && (c != '.' || i > 0) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if b.Len() <= maxFileName {
		return b.String()
	}
	sum := sha256.Sum256([]byte(vm))
	hash := "~" + hex.EncodeToString(sum[:16])
	return b.String()[:maxFileName-len(hash)] + hash
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

// encode returns the content of a guest's file.
func encode(d fabric.Desired) ([]byte, error) { return encodeAs("guest", d) }

// encodeAs returns the content of a file that has a value under a key.
func encodeAs(key string, v any) ([]byte, error) {
	var value bytes.Buffer
	e := json.NewEncoder(&value)
	e.SetEscapeHTML(false) // other tools do not escape, and would compute another checksum
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	compact := bytes.TrimSuffix(value.Bytes(), []byte("\n"))
	var out bytes.Buffer
	fmt.Fprintf(&out, "{\n  \"format\": %d,\n  \"sum\": %q,\n  %q: ", format, checksum(compact), key)
	if err := json.Indent(&out, compact, "  ", "  "); err != nil {
		return nil, err
	}
	out.WriteString("\n}\n")
	return out.Bytes(), nil
}

// parse reads the content of the guest's file with the given name, without suffix.
// Its errors say the reason and the way out.
func parse(name string, content []byte) (fabric.Desired, error) {
	var d fabric.Desired
	if err := decodeAs("guest", content, &d, wayOut); err != nil {
		return fabric.Desired{}, err
	}
	if err := check(d); err != nil {
		return fabric.Desired{}, fmt.Errorf("damaged (%v); %s", err, wayOut)
	}
	if want := fileName(d.VM.Name); want != name {
		return fabric.Desired{}, fmt.Errorf("it is of guest %q, whose file is %s; move it there, or remove it", d.VM.Name, want+suffix)
	}
	return d, nil
}

// validGuest reports why the content of a guest's file cannot be read.
func validGuest(name string, content []byte) error {
	_, err := parse(name, content)
	return err
}

// decodeAs reads the value under a key of a file's content. wayOut is what to do with
// a damaged file.
func decodeAs(key string, content []byte, v any, wayOut string) error {
	var e map[string]json.RawMessage
	var is int
	var sum string
	if err := json.Unmarshal(content, &e); err != nil {
		return fmt.Errorf("damaged (%v); %s", err, wayOut)
	}
	_ = json.Unmarshal(e["format"], &is)
	_ = json.Unmarshal(e["sum"], &sum)
	switch {
	case is > format:
		return fmt.Errorf("written in format %d, this version reads %d; run the newer version that wrote it", is, format)
	case is != format:
		return fmt.Errorf("damaged (no format); %s", wayOut)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, e[key]); err != nil {
		return fmt.Errorf("damaged (no %s); %s", key, wayOut)
	}
	if real := checksum(compact.Bytes()); real != sum {
		return fmt.Errorf("damaged (its checksum is %s, not %q); if you edited it, write that sum into it, else %s", real, sum, wayOut)
	}
	if err := json.Unmarshal(e[key], v); err != nil {
		return fmt.Errorf("damaged (%v); %s", err, wayOut)
	}
	return nil
}

const wayOut = "remove it, attach the guest again or restart it, and restart the agent"

// check refuses a guest that could not be read back.
func check(d fabric.Desired) error {
	switch {
	case d.VM.Name == "":
		return fmt.Errorf("the guest has no name")
	case !utf8.ValidString(d.VM.Name):
		return fmt.Errorf("the guest's name %q is not UTF-8", d.VM.Name)
	case d.State < fabric.Absent || d.State > fabric.Live:
		return fmt.Errorf("the guest has no state")
	}
	return nil
}

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
