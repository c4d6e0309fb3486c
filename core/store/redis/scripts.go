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
)

// scripts are all that changes anything in Redis.
type scripts struct {
	apply, page, release, acquire, renew, end *goredis.Script
}

func newScripts() scripts {
	script := func(text string) *goredis.Script { return goredis.NewScript(commonLua + text) }
	return scripts{
		apply: script(applyLua), page: script(pageLua), release: script(releaseLua),
		acquire: script(acquireLua), renew: script(renewLua), end: script(endLua),
	}
}
