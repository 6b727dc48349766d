package doctor_test

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

func addrs(all ...netip.Addr) []netip.Addr { return all }

// protect has a listener take connections from node1 with a password alone.
func protect(fd int, password string) error {
	sig := unix.TCPMD5Sig{Addr: unix.SockaddrStorage{Family: unix.AF_INET}, Keylen: uint16(len(password))}
	copy(sig.Key[:], password)
	copy(sig.Addr.Data[2:], []byte{10, 10, 0, 21})
	return unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig)
}

// answer answers greetings as the lines of agents are described in fabric/nodes.
func (l *lab) answer(listener net.Listener) {
	key := hmac.New(sha256.New, []byte("the key of the cluster"))
	fmt.Fprintf(key, "vmfabric agents, key file, %q", "lab")
	secret := key.Sum(nil)
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		hello, _ := json.Marshal(map[string]any{
			"v": 1, "cluster": "lab", "node": l.node2.Load().name, "nonce": "n", "keyed": true, "key_from": "key_file", "first": 4096, "now": time.Now().Add(l.node2.Load().ahead),
		})
		_, _ = c.Write(append(hello, '\n'))
		var question struct{ MAC []byte }
		if line, err := bufio.NewReader(c).ReadBytes('\n'); err == nil && json.Unmarshal(line, &question) == nil {
			body := []byte(`{"v":1,"answer":{"held":false}}`)
			mac := hmac.New(sha256.New, secret)
			fmt.Fprintf(mac, "%q %s %d %x ", "n", "response", 1, question.MAC)
			mac.Write(body)
			sealed, _ := json.Marshal(map[string]any{"mac": mac.Sum(nil), "body": json.RawMessage(body)})
			_, _ = c.Write(append(sealed, '\n'))
		}
		c.Close()
	}
}
