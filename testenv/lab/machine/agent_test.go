package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeAgent answers calls at a socket by a function of the call, which gives the line to
// answer; nothing: it stays silent. Its first connection begins with what an earlier call
// left.
func fakeAgent(t *testing.T, answer func(call string, arguments map[string]any) string) *guestAgent {
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		left := `{"return": {"pid": 1}}` + "\n"
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(left))
			left = ""
			serve(conn, answer)
		}
	}()
	return &guestAgent{path: path}
}

func serve(conn net.Conn, answer func(string, map[string]any) string) {
	defer conn.Close()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		if line[0] == 0xff {
			line = line[1:]
		}
		var call struct {
			Execute   string
			Arguments map[string]any
		}
		if json.Unmarshal(line, &call) != nil {
			return
		}
		if call.Execute == "guest-sync-delimited" {
			number, _ := json.Marshal(call.Arguments["id"])
			_, _ = conn.Write([]byte("\xff{\"return\": " + string(number) + "}\n"))
			continue
		}
		_, _ = conn.Write([]byte(answer(call.Execute, call.Arguments)))
	}
}

// TestGuestAgent: a program is waited for, and what an earlier call left is no answer.
func TestGuestAgent(t *testing.T) {
	asked := 0
	g := fakeAgent(t, func(call string, arguments map[string]any) string {
		for name, value := range arguments {
			assert.NotNil(t, value, "%s: qemu-ga refuses null", name)
		}
		switch {
		case call == "guest-exec" && arguments["path"] == "/none":
			return `{"error": {"class": "GenericError", "desc": "no such file"}}` + "\n"
		case call == "guest-exec":
			return `{"return": {"pid": 7}}` + "\n"
		}
		assert.EqualValues(t, 7, arguments["pid"])
		if asked++; asked < 3 {
			return `{"return": {"exited": false}}` + "\n"
		}
		return `{"return": {"exited": true, "exitcode": 3, "out-data": "b3V0", "err-data": "ZXJy"}}` + "\n"
	})
	o, err := g.exec(t.Context(), "/bin/true", nil, nil, nil)
	require.NoError(t, err)
	assert.Equal(t, outcome{Exited: true, ExitCode: 3, Out: []byte("out"), Err: []byte("err")}, o)
	assert.Equal(t, 3, asked)
	_, err = g.exec(t.Context(), "/none", nil, nil, nil)
	require.EqualError(t, err, "guest agent: guest-exec: no such file")
}

// TestGuestAgentIsSilent: a call ends with its context, and the next one begins anew.
func TestGuestAgentIsSilent(t *testing.T) {
	silent := true
	g := fakeAgent(t, func(call string, _ map[string]any) string {
		if silent {
			return ""
		}
		return `{"return": {"exited": true}}` + "\n"
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := g.status(ctx, 7)
	require.ErrorContains(t, err, "timeout")
	silent = false
	o, err := g.status(t.Context(), 7)
	require.NoError(t, err)
	assert.True(t, o.Exited)
}
