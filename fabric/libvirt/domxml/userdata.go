package domxml

import (
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"strings"
)

// UserDataNamespace is the XML namespace of <user-data> in a domain's <metadata>. Hooks and
// lists of domains do without that element: it may be large, and nothing but the guest
// reads it.
const UserDataNamespace = "urn:vmfabric:user-data:1"

// UserData returns the user data in a domain's XML, and the UUID of the domain; nil: it has
// none. With the attribute encoding='base64' the text of the element is that of the data,
// with spaces anywhere.
func UserData(text []byte) (data []byte, uuid string, err error) {
	var domain struct {
		UUID     string `xml:"uuid"`
		Metadata struct {
			UserData *struct {
				Encoding string `xml:"encoding,attr"`
				Text     string `xml:",chardata"`
			} `xml:"urn:vmfabric:user-data:1 user-data"`
		} `xml:"metadata"`
	}
	if err := xml.Unmarshal(text, &domain); err != nil {
		return nil, "", fmt.Errorf("its XML: %w", err)
	}
	uuid = strings.TrimSpace(domain.UUID)
	u := domain.Metadata.UserData
	if u == nil {
		return nil, uuid, nil
	}
	switch u.Encoding {
	case "":
		return []byte(u.Text), uuid, nil
	case "base64":
		if data, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(u.Text), "")); err != nil {
			return nil, uuid, fmt.Errorf("<user-data> is no base64: %w; write it with base64 -w0", err)
		}
		return data, uuid, nil
	}
	return nil, uuid, fmt.Errorf("<user-data> has the encoding %.20q; it takes base64, or none and plain text", u.Encoding)
}
