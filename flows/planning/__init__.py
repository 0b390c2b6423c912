"""What a run or a sweep will cost before it starts: queries, tokens, money, time, memory."""
