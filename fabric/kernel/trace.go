package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes of trace messages (<linux/netfilter/nf_tables.h>), which x/sys does
// not have all of.
const (
	traceTable   = 1
	traceChain   = 2
	traceRule    = 3
	traceType    = 4
	traceVerdict = 5
	traceID      = 6
	tracePolicy  = 16

	traceTypePolicy = 1
	verdictCode     = 1
	verdictDrop     = 0
	verdictAccept   = 1
	verdictQueue    = 3
	verdictContinue = -1
)

// traceStep is one step of nf_tables with a packet.
type traceStep struct {
	family       uint8 // NFPROTO_* of the table
	table, chain string
	rule         uint64 // handle; 0: the chain's policy, or its end
	policy       bool
	verdict      int32 // NF_*, or negative if the packet goes on
	id           uint32
}

func (s traceStep) ours() bool  { return s.table == trialName }
func (s traceStep) drops() bool { return s.verdict == verdictDrop }

// dialTrace opens a socket for the trace messages of nf_tables.
func dialTrace() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nfnetlink: %w", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTRACE); err != nil {
		conn.Close()
		return nil, fmt.Errorf("nfnetlink: trace of packets: %w; load nf_tables", err)
	}
	return conn, nil
}

// drain reads and drops the messages about earlier packets.
func drain(conn *netlink.Conn) error {
	for {
		if err := conn.SetReadDeadline(time.Now()); err != nil {
			return err
		}
		if _, err := conn.Receive(); err != nil {
			if errors.Is(err, unix.ENOBUFS) {
				continue
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return err
		}
	}
}

// follow returns the outcome of the next packet of a trial. A drop is its last
// step. A packet whose steps end without a drop got lost elsewhere.
func follow(ctx context.Context, conn *netlink.Conn, wait time.Duration) (outcome, error) {
	var o outcome
	var id uint32
	bound := time.Now().Add(wait)
	if d, ok := ctx.Deadline(); ok && d.Before(bound) {
		bound = d
	}
	if err := conn.SetReadDeadline(bound); err != nil {
		return o, err
	}
	for {
		msgs, err := conn.Receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return o, ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			continue // somebody traces a lot
		case err != nil:
			return o, fmt.Errorf("nfnetlink: %w", err)
		}
		for _, m := range msgs {
			s, ok := parseTrace(m)
			if !ok {
				continue
			}
			if len(o.steps) == 0 && s.ours() {
				id = s.id // its first step is in the trial's table, which traces it
			}
			if s.id != id || len(o.steps) == 0 && !s.ours() {
				continue
			}
			o.steps = append(o.steps, s)
			if s.drops() {
				o.passed = s.ours()
				return o, nil
			}
		}
	}
}

// parseTrace reads a trace message of nf_tables.
func parseTrace(m netlink.Message) (s traceStep, ok bool) {
	const sizeofNfgenmsg = 4
	if uint16(m.Header.Type) != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE || len(m.Data) < sizeofNfgenmsg {
		return s, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
	if err != nil {
		return s, false
	}
	ad.ByteOrder = binary.BigEndian
	s.family, s.verdict = m.Data[0], verdictContinue
	var policy uint32
	for ad.Next() {
		switch ad.Type() {
		case traceTable:
			s.table = ad.String()
		case traceChain:
			s.chain = ad.String()
		case traceRule:
			s.rule = ad.Uint64()
		case traceType:
			s.policy = ad.Uint32() == traceTypePolicy
		case traceVerdict:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == verdictCode {
						s.verdict = int32(ad.Uint32())
					}
				}
				return nil
			})
		case traceID:
			s.id = ad.Uint32()
		case tracePolicy:
			policy = ad.Uint32()
		}
	}
	if s.policy {
		s.verdict = int32(policy)
	}
	return s, ad.Err() == nil
}
