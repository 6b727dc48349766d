package doctor

import "strings"

// entry is a line of an INI file, as NetworkManager and systemd have them.
type entry struct{ section, key, value, file string }

// parseINI reads entries; the operators of NetworkManager's += and -= stay with the key.
func parseINI(file, text string) (all []entry) {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = line[1 : len(line)-1]
		default:
			if key, value, ok := strings.Cut(line, "="); ok {
				all = append(all, entry{section, strings.TrimSpace(key), strings.TrimSpace(value), file})
			}
		}
	}
	return all
}

// portNames are names as ports have them: those of a guest, and the far end of a veth port.
var portNames = []string{"web_net0", "web_peer0"}
