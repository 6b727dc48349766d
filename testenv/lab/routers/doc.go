// Package routers has the BGP speakers of a laboratory (testenv/lab/core): BIRD
// ([StartBird]) and FRR ([StartFRR]) as route reflectors, core gateways and
// announcers, with their configuration ([Reflector], [CoreGateway], [Announcer]),
// and one that sends messages that no daemon would ([Rogue]).
package routers
