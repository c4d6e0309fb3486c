package redis

import (
	_ "embed" // the scripts

	goredis "github.com/redis/go-redis/v9"
)

var (
	//go:embed common.lua
	commonLua string
	//go:embed apply.lua
	applyLua string
	//go:embed page.lua
	pageLua string
	//go:embed release.lua
	releaseLua string
	//go:embed acquire.lua
	acquireLua string
	//go:embed renew.lua
	renewLua string
	//go:embed end.lua
	endLua string
	//go:embed accept.lua
	acceptLua string
)

// scripts are all that changes anything in Redis.
type scripts struct {
	apply, page, release, acquire, renew, end, accept *goredis.Script
}

func newScripts() scripts {
	script := func(text string) *goredis.Script { return goredis.NewScript(commonLua + text) }
	// A lease is small, and nobody would be the active scheduler of a Redis that is full.
	small := func(text string) *goredis.Script {
		return goredis.NewScript("#!lua flags=allow-oom\n" + commonLua + text)
	}
	return scripts{
		apply: script(applyLua), page: script(pageLua), release: script(releaseLua),
		acquire: small(acquireLua), renew: small(renewLua), end: small(endLua), accept: small(acceptLua),
	}
}
